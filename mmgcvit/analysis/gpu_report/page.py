"""The report as a page in Markdown, and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...progress import duration
from ...visualization.curves import COLORS
from ...visualization.png import figure_png
from ..doc_tables import markdown
from .job import Row
from .parts import PARTS

REHEARSAL = 'Rehearsal on a CPU: numbers mean nothing'


@dataclass
class Section:
    """What is known of a part.

    Attributes:
        rows: Its rows; each maps column → value.
        missing: What was not measured, and the reason.
        seconds: Its duration, or None if it has not ended.
    """

    rows: list[Row] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    seconds: float | None = None


@dataclass
class Report:
    """The report so far.

    Attributes:
        date: Day of the run.
        device: Name of the GPU with the number of GPUs, or 'CPU'.
        rehearsal: Whether the numbers mean nothing.
        version: Versions of this package and of PyTorch, and the commit.
        finished: Whether the run has ended.
        sections: The parts in their order.
    """

    date: str
    device: str
    rehearsal: bool
    version: str
    finished: bool
    sections: dict[str, Section]


def markdown_page(report: Report, name: str, with_picture: bool) -> str:
    """Return the page.

    Args:
        report: The report.
        name: File name of the page without suffix, which its other files share.
        with_picture: Whether there is a picture.
    """
    title = REHEARSAL if report.rehearsal else report.device
    lines = [f'# {title}', f'{report.date}; {report.version}; all numbers: `{name}.json`.']
    if not report.finished:
        open_parts = [PARTS[name].title for name, s in report.sections.items() if s.seconds is None]
        lines.append(f'**The run has not ended.** Missing or incomplete: {"; ".join(open_parts)}.')
    if with_picture:
        lines.append(f'![Times and rates of the tables below]({name}.png)')
    for name, section in report.sections.items():
        lines += [f'## {PARTS[name].title}', PARTS[name].text]
        if section.rows:
            lines.append(_table(section.rows))
        if section.missing:
            lines.append(_missing(section.missing))
        if section.seconds is None:
            lines.append('Not measured to the end: the run has not reached the end of this part.')
        elif section.seconds >= 0.5:
            lines.append(f'*{duration(section.seconds)}*')
    return '\n\n'.join(lines) + '\n'


def _table(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown(columns, [[_cell(row.get(column)) for column in columns] for row in rows])


def _cell(value: str | float | None) -> str:
    """Return a value in three significant digits, or a text that does not end its cell."""
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    text = '–' if value is None else str(value)
    return text.replace('|', r'\|')


def _missing(missing: Sequence[tuple[str, str]]) -> str:
    """Return what was not measured as a list, with one item per reason."""
    reasons: dict[str, list[str]] = {}
    for what, reason in missing:
        reasons.setdefault(reason, []).append(what)
    return '\n'.join(f'- not measured: {"; ".join(w)}: {reason}' for reason, w in reasons.items())


def picture(report: Report) -> bytes | None:
    """Return bars of training steps as a PNG file, or None if none were measured."""
    backbones, trainings = (
        report.sections.get(name, Section()).rows for name in ('backbones', 'trainings')
    )
    panels: dict[str, dict[str, float]] = {}
    if backbones:
        image, precision = backbones[0]['image'], backbones[0]['precision']
        panels[f'Training step of the backbone, {image}, {precision} (ms)'] = {
            f'{row["backbone"]} {row["size"]}': row['training step (ms)']
            for row in backbones
            if (row['image'], row['precision']) == (image, precision)
        }
    if trainings:
        panels['Training (images/s)'] = {row['config']: row['images/s'] for row in trainings}
    if not panels:
        return None
    heights = [len(bars) + 2 for bars in panels.values()]
    figure = Figure(figsize=(9, 0.3 * sum(heights)), layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, (title, bars) in zip(grid[:, 0], panels.items(), strict=True):
        drawn = axes.barh(list(bars), list(bars.values()), color=COLORS[0])
        axes.bar_label(drawn, [_cell(value) for value in bars.values()], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(f'{title} (rehearsal)' if report.rehearsal else title, fontsize=10)
        axes.spines[['top', 'right']].set_visible(False)
    return figure_png(figure, dpi=120)
