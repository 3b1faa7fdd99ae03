"""Figures of a comparison, and its part of ``docs/comparison.md``."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...visualization.comparison import Band, plot_comparison
from ..doc_tables import markdown, replace_between
from .plan import BACKBONES
from .results import Curves

Times = Mapping[str, Mapping[str, Any]]

TITLES = {
    'detection': 'Mask R-CNN on drawn shapes',
    'segmentation': 'UPerNet on drawn shapes',
}
BEGIN, END = '<!-- results: made by tools/compare.py -->', '<!-- end of results -->'


def draw(folder: Path, curves: Sequence[Curves], timing: Times) -> list[Path]:
    """Draw one figure per task and return their paths.

    Args:
        folder: Folder of the figures ``comparison_TASK.png``.
        curves: See :func:`.read_curves`.
        timing: See :func:`.measure_times`.
    """
    files = []
    for task, ones in groupby(curves, lambda one: one.task):
        panels: dict[str, dict[str, Band]] = {}
        for one in ones:
            seconds = _seconds(timing, one)
            band = Band(one.iterations, one.mean(), one.spread(), seconds)
            panels.setdefault(one.metric.name, {})[BACKBONES[one.backbone]] = band
        note = f'mean and standard deviation over {_seeds([c for c in curves if c.task == task])}'
        file = folder / f'comparison_{task}.png'
        files.append(plot_comparison(file, TITLES[task], panels, note))
    return files


def report(
    curves: Sequence[Curves],
    params: Mapping[str, int],
    timing: Times,
    figures: str = '',
) -> str:
    """Return the results in Markdown: per task a figure, a table and a sentence per metric.

    Args:
        curves: See :func:`.read_curves`.
        params: Number of parameters of each backbone.
        timing: See :func:`.measure_times`.
        figures: Folder of the figures from the page, ending in ``/``, or '' for the same folder.
    """
    parts = []
    for task, ones in groupby(curves, lambda one: one.task):
        ones = list(ones)
        parts.append(f'**{TITLES[task]}**, {_seeds(ones)}:')
        parts.append(f'![{TITLES[task]}]({figures}comparison_{task}.png)')
        parts.append(_table(ones, params, timing))
        lines = [_comparison(list(same)) for _, same in groupby(ones, lambda one: one.metric)]
        parts.append('\n'.join(lines))
        if task in timing:
            parts.append(_measurement(timing[task]))
    return '\n\n'.join(parts)


def write_page(page: Path, text: str) -> Path:
    """Replace the text between the markers of a page and return its path.

    Raises:
        UserError: If the page does not contain the two markers once.
    """
    before = page.read_text(encoding='utf-8')
    return write_atomically(page, replace_between(before, BEGIN, END, text, page).encode())


def _seconds(timing: Times, curves: Curves) -> float | None:
    """Return the seconds per iteration, or None if not measured."""
    return timing.get(curves.task, {}).get('seconds', {}).get(curves.backbone)


def _measurement(timing: Mapping[str, Any]) -> str:
    versions = ', '.join(f'{name} {version}' for name, version in timing['versions'].items())
    return (
        f'Times: medians of {timing["rounds"]} training steps per backbone, measured in turn on '
        f'the same batches on {timing["date"]}; {timing["device"]}, {timing["threads"]} '
        f'thread{"s" * (timing["threads"] > 1)}; {versions}.'
    )


def _seeds(curves: Sequence[Curves]) -> str:
    """Return the number of seeds, or the numbers where they differ."""
    numbers = sorted({len(one.seeds) for one in curves})
    return f'{" or ".join(map(str, numbers))} seed{"s" * (numbers != [1])}'


def _table(curves: Sequence[Curves], params: Mapping[str, int], timing: Times) -> str:
    metrics = list(dict.fromkeys(one.metric.name for one in curves))
    header = ['backbone', 'parameters']
    header += [f'{name}, {when}' for name in metrics for when in ('last', 'best')]
    header += ['seconds per iteration', 'minutes of training']
    rows = []
    for backbone, ones in groupby(
        sorted(curves, key=lambda one: list(BACKBONES).index(one.backbone)),
        lambda one: one.backbone,
    ):
        ones = list(ones)
        row = [BACKBONES[backbone], f'{params[backbone] / 1e6:.2f} M']
        for one in ones:
            row += [f'{mean:.1f} ± {spread:.1f}' for mean, spread in (one.last(), one.best())]
        seconds = _seconds(timing, ones[0])
        if seconds:
            row += [f'{seconds:.3f}', f'{seconds * ones[0].iterations[-1] / 60:.1f}']
        else:
            row += ['not measured'] * 2
        rows.append(row)
    return markdown(header, rows)


def _comparison(curves: Sequence[Curves]) -> str:
    """Return a sentence about the backbone with the highest last mean and the next one."""
    first, *others = sorted(curves, key=lambda one: -one.last()[0])
    name = first.metric.name
    if not others:
        return f'- {name}: only {BACKBONES[first.backbone]} was trained.'
    second = others[0]
    # of the rounded means, which readers will subtract
    difference = round(first.last()[0], 1) - round(second.last()[0], 1)
    spread = max(first.last()[1], second.last()[1])
    if f'{difference:.1f}' == '0.0':
        names = f'{BACKBONES[first.backbone]} and {BACKBONES[second.backbone]}'
        return f'- {name}: {names} have the same, highest mean after the last iteration.'
    if min(len(first.seeds), len(second.seeds)) < 2:
        verdict = 'one seed does not show how much of it is chance'
    elif difference > 2 * spread:
        verdict = f'more than twice the larger standard deviation ({spread:.1f})'
    else:
        verdict = f'within twice the larger standard deviation ({spread:.1f}), so not a clear lead'
    return (
        f'- {name}: {BACKBONES[first.backbone]} has the highest mean after the last iteration, '
        f'{difference:.1f} above {BACKBONES[second.backbone]}: {verdict}.'
    )
