"""Loss and validation metrics of trainings, read from the scalars that mmengine logs.

mmengine writes one JSON object a line to ``WORK_DIR/TIMESTAMP/vis_data/scalars.json``; each start
of a training makes a new timestamp, a resumed one included. A training record counts iterations
in ``step``. What ``step`` is in a validation record is not said: the number of iterations, or of
epochs (``LoggerHook(log_metric_by_epoch=True)``, the default).
"""

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SCALARS = 'scalars.json'
FRACTIONS = ('coco/segm_mAP', 'coco/segm_mAP_50', 'coco/bbox_mAP', 'coco/bbox_mAP_50')
PERCENTAGES = ('mIoU', 'mAcc', 'aAcc', 'accuracy/top1', 'accuracy/top5')
"""The metrics that are plotted, those from 0 to 1 and those from 0 to 100 on axes of their own;
where a log has none of them all that it has are plotted."""

NO_METRICS = frozenset({'step', 'iter', 'epoch', 'time', 'data_time', 'memory'})
COLOURS = ('#4269d0', '#e8710a', '#2b9a66', '#c2255c', '#8a5cd0', '#7a5c3e', '#1f9ab0', '#6b7280')
STYLES = ('-', '--', ':', '-.')


@dataclass
class TrainingLog:
    """The scalars of one training.

    Attributes:
        name (str): Name of its folder or file.
        loss (dict[int, float]): Total loss by iteration, in ascending order.
        metrics (dict[str, dict[int, float]]): Values of each validation metric by the number of
            iterations done before that validation, in ascending order.
    """

    name: str
    loss: dict[int, float] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)


def read_training_log(log: str | os.PathLike) -> TrainingLog:
    """Reads the scalars of one training.

    The files of a resumed training are joined in the order of their timestamps; from the first
    iteration of a later file on, only the later file counts. Validation results logged by epoch
    are placed at the iteration at which the epoch ended.

    Args:
        log (str | os.PathLike): A work dir, one of its timestamp folders, or a ``scalars.json``.

    Returns:
        TrainingLog: Loss and metrics by iteration.

    Raises:
        FileNotFoundError: There is no ``scalars.json`` where it is expected.
        ValueError: A file is not what mmengine writes, or holds neither losses nor metrics.
    """
    path = Path(log).expanduser()
    if path.is_file():
        files = [path]
    else:
        files = sorted(path.glob(f'*/vis_data/{SCALARS}'))
        files += sorted(path.glob(f'vis_data/{SCALARS}')) + sorted(path.glob(SCALARS))
    if not files:
        there = 'holds none' if path.exists() else 'does not exist'
        raise FileNotFoundError(
            f'no training log: {path} {there}; expected a work dir with '
            f'TIMESTAMP/vis_data/{SCALARS} (written after the first logged iteration), or such a '
            'file'
        )
    joined = TrainingLog(_name(path.resolve()))
    for file in files:
        later = _read_scalars(file)
        starts = [min(series) for series in (later.loss, *later.metrics.values()) if series]
        if not starts:
            continue
        _truncate(joined.loss, min(starts))
        for series in joined.metrics.values():
            _truncate(series, min(starts))
        joined.loss.update(later.loss)
        for name, series in later.metrics.items():
            joined.metrics.setdefault(name, {}).update(series)
    joined.metrics = {name: series for name, series in joined.metrics.items() if series}
    if not joined.loss and not joined.metrics:
        raise ValueError(
            f'{", ".join(str(file) for file in files)}: neither a loss nor a metric is logged; '
            'expected the scalars of a training'
        )
    return joined


def plot_training_curves(
    logs: str | os.PathLike | Sequence[str | os.PathLike],
    out_file: str | os.PathLike,
    labels: Sequence[str] | None = None,
) -> Path:
    """Plots loss and validation metrics of one or several trainings over iterations.

    Args:
        logs (str | os.PathLike | Sequence): Work dirs or ``scalars.json`` files, see
            :func:`read_training_log`.
        out_file (str | os.PathLike): The PNG to write; it is replaced in one step.
        labels (Sequence[str] | None): One name a training. Defaults to the folders' names.

    Returns:
        Path: The file written.

    Raises:
        FileNotFoundError, ValueError: From :func:`read_training_log`; also ValueError if there is
            nothing to plot, the number of labels is another, or ``out_file`` is no PNG.
    """
    paths = [logs] if isinstance(logs, str | os.PathLike) else list(logs)
    if not paths:
        raise ValueError('logs is empty; give at least one work dir or scalars.json')
    if labels is not None and len(labels) != len(paths):
        raise ValueError(f'labels has {len(labels)} entries for {len(paths)} logs; give one each')
    out_file = Path(out_file).expanduser()
    if out_file.suffix.lower() != '.png':
        raise ValueError(f'out_file must end in .png, got {str(out_file)!r}')
    runs = [read_training_log(path) for path in paths]
    for run, label in zip(runs, labels or (), strict=False):
        run.name = label

    groups = _metric_groups(runs)
    figure = Figure(figsize=(6.4 * (1 + len(groups)), 4.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(groups), squeeze=False)[0]
    _plot_loss(axes[0], runs)
    for axis, names in zip(axes[1:], groups, strict=True):
        _plot_metrics(axis, runs, names)
    if len(runs) == 1:
        figure.suptitle(runs[0].name, fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format='png', dpi=150)
    return write_at_once(out_file, png.getvalue())


def write_at_once(path: Path, content: bytes) -> Path:
    """Writes a file, parents included, so that at no moment a part of it is to be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for the rename to be one step.
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a twelfth of a series.

    Args:
        values (Sequence[float]): The series; values that are not finite are passed over.

    Returns:
        list[float]: As long as ``values``; NaN before the first finite value.
    """
    past = 1 - 2 / (1 + max(1, len(values) / 12))
    total = share = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total = past * total + (1 - past) * value
            # The weights' sum: without it the average starts near zero.
            share = past * share + (1 - past)
        result.append(total / share if share else math.nan)
    return result


def _read_scalars(file: Path) -> TrainingLog:
    log = TrainingLog(file.name)
    iteration = 0  # of the latest training record
    epoch = None  # the one it belongs to
    firsts: dict[int, int] = {}  # the first iteration logged in each epoch
    validations = []  # (step, iteration and epoch logged before it, metrics)
    for record in _records(file):
        step = int(record['step'])
        if 'loss' in record or 'lr' in record or 'iter' in record:
            iteration, epoch = int(record.get('iter', step)), record.get('epoch')
            if epoch is not None:
                firsts.setdefault(int(epoch), iteration)
            if _is_number(record.get('loss')):
                log.loss[iteration] = float(record['loss'])
            continue
        metrics = {
            name: float(value)
            for name, value in record.items()
            if name not in NO_METRICS and not name.startswith('loss') and _is_number(value)
        }
        if step > 0:  # a validation without training counts from nothing
            validations.append((step, iteration, epoch, metrics))
    length = _epoch_length(firsts)
    for step, before, epoch, metrics in validations:
        place = step
        if step < before:  # no number of iterations, so one of epochs
            place = before
            if step == epoch and length is not None:
                place = max(before, step * length)
        for name, value in metrics.items():
            log.metrics.setdefault(name, {})[place] = value
    return log


def _epoch_length(firsts: dict[int, int]) -> int | None:
    """Iterations in an epoch, from the first one logged in each; None from a single epoch.

    The last iterations of an epoch often go unlogged, but logging starts anew in each.
    """
    if len(firsts) < 2:
        return None
    low, high = min(firsts), max(firsts)
    return round((firsts[high] - firsts[low]) / (high - low))


def _records(file: Path) -> list[dict]:
    lines = file.read_text(encoding='utf-8').splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            # With log_with_hierarchy=True names carry the phase.
            record = {
                name.removeprefix('train/').removeprefix('val/'): record[name] for name in record
            }
            int(record['step'])
        except (ValueError, TypeError, KeyError, AttributeError):
            if number == len(lines):  # a process that is killed may leave half a line
                break
            raise ValueError(
                f'{file}, line {number}: expected a JSON object with a "step", as mmengine logs '
                f'them, found {line[:60]!r}'
            ) from None
        records.append(record)
    return records


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(path: Path) -> str:
    """The work dir's name, also for a file or folder inside it."""
    if path.is_file():
        path = path.parent
    return (path.parents[1] if path.name == 'vis_data' else path).name


def _truncate(series: dict[int, float], start: int) -> None:
    for iteration in [key for key in series if key >= start]:
        del series[iteration]


def _metric_groups(runs: list[TrainingLog]) -> list[list[str]]:
    found = dict.fromkeys(name for run in runs for name in run.metrics)
    groups = [[name for name in names if name in found] for names in (FRACTIONS, PERCENTAGES)]
    return [group for group in groups if group] or ([list(found)] if found else [])


def _plot_loss(axis: Axes, runs: list[TrainingLog]) -> None:
    for number, run in enumerate(runs):
        if not run.loss:
            continue
        colour = COLOURS[number % len(COLOURS)]
        iterations, values = list(run.loss), list(run.loss.values())
        axis.plot(iterations, values, color=colour, alpha=0.35, linewidth=0.8)
        axis.plot(iterations, smoothed(values), color=colour, linewidth=2, label=run.name)
    _finish(axis, 'training loss', legend=len(runs) > 1)


def _plot_metrics(axis: Axes, runs: list[TrainingLog], names: list[str]) -> None:
    for number, run in enumerate(runs):
        for style, name in enumerate(names):
            series = run.metrics.get(name)
            if not series:
                continue
            # One training: a colour a metric. Several: a colour a training, a line style a metric.
            single = len(runs) == 1
            last = list(series.values())[-1]
            axis.plot(
                list(series),
                list(series.values()),
                color=COLOURS[(style if single else number) % len(COLOURS)],
                linestyle='-' if single else STYLES[style % len(STYLES)],
                marker='o',
                markersize=4,
                label=f'{name} {last:.3g}' if single else f'{run.name}: {name} {last:.3g}',
            )
    axis.set_ylim(0, max(axis.get_ylim()[1], 10 if names[0] in PERCENTAGES else 0.1))
    _finish(axis, 'validation metrics (last value)', legend=True)


def _finish(axis: Axes, title: str, legend: bool) -> None:
    axis.set_title(title, fontsize=10, loc='left')
    axis.set_xlabel('iteration')
    axis.grid(color='#e5e7eb', linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, frameon=False)
