"""Plot of training losses and validation metrics."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from .png import figure_png
from .training_log import TrainingLog, read_training_log

FRACTIONS = ('coco/segm_mAP', 'coco/segm_mAP_50', 'coco/bbox_mAP', 'coco/bbox_mAP_50')
PERCENTAGES = ('mIoU', 'mAcc', 'aAcc', 'accuracy/top1', 'accuracy/top5')
"""Metrics to plot, with separate axes for ranges from 0 to 1 and from 0 to 100. If a log contains
none of them, all its metrics are plotted."""

COLORS = ('#4269d0', '#e8710a', '#2b9a66', '#c2255c', '#8a5cd0', '#7a5c3e', '#1f9ab0', '#6b7280')
STYLES = ('-', '--', ':', '-.')


def plot_training_curves(
    logs: str | os.PathLike | Sequence[str | os.PathLike],
    out_file: str | os.PathLike,
    labels: Sequence[str] | None = None,
) -> Path:
    """Plot loss and validation metrics of one or more training runs over iterations.

    Args:
        logs: Work dirs or ``scalars.json`` files, see :func:`read_training_log`.
        out_file: PNG file to write. An existing file is replaced atomically.
        labels: One name per run. Defaults to the names of the work dirs.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If a log does not exist, see :func:`read_training_log`.
        ValueError: If ``logs`` is empty, a log is invalid, the number of labels differs from the
            number of logs, or ``out_file`` does not end in .png.
    """
    paths = [logs] if isinstance(logs, str | os.PathLike) else list(logs)
    if not paths:
        raise ValueError('logs is empty: pass at least one work dir or scalars.json')
    if labels is not None and len(labels) != len(paths):
        raise ValueError(
            f'labels has {len(labels)} entries for {len(paths)} logs: pass one label per log'
        )
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
    return write_atomically(out_file, figure_png(figure, dpi=150))


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over about a twelfth of a series.

    Args:
        values: The series. Values that are not finite are ignored.

    Returns:
        One average per value; NaN before the first finite value.
    """
    past = 1 - 2 / (1 + max(1, len(values) / 12))
    total = weight = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total = past * total + (1 - past) * value
            # bias correction; without it, the average would start near zero
            weight = past * weight + (1 - past)
        result.append(total / weight if weight else math.nan)
    return result


def _metric_groups(runs: list[TrainingLog]) -> list[list[str]]:
    logged = dict.fromkeys(name for run in runs for name in run.metrics)
    groups = [[name for name in names if name in logged] for names in (FRACTIONS, PERCENTAGES)]
    return [group for group in groups if group] or ([list(logged)] if logged else [])


def _plot_loss(axis: Axes, runs: list[TrainingLog]) -> None:
    for number, run in enumerate(runs):
        if not run.loss:
            continue
        color = COLORS[number % len(COLORS)]
        iterations, values = list(run.loss), list(run.loss.values())
        axis.plot(iterations, values, color=color, alpha=0.35, linewidth=0.8)
        marker = 'o' if len(values) == 1 else None  # a line of one point is invisible
        axis.plot(
            iterations, smoothed(values), color=color, linewidth=2, marker=marker, label=run.name
        )
    _finish(axis, 'training loss', legend=len(runs) > 1)


def _plot_metrics(axis: Axes, runs: list[TrainingLog], names: list[str]) -> None:
    for number, run in enumerate(runs):
        for style, name in enumerate(names):
            series = run.metrics.get(name)
            if not series:
                continue
            # a single run has one color per metric; several runs have one color per run and one
            # line style per metric
            single = len(runs) == 1
            last = list(series.values())[-1]
            axis.plot(
                list(series),
                list(series.values()),
                color=COLORS[(style if single else number) % len(COLORS)],
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
