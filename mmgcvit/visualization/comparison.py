"""Figure of metrics against iterations and time, with mean and spread of several backbones."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from .curves import COLORS
from .png import figure_png


@dataclass(frozen=True)
class Band:
    """Curve of one backbone.

    Attributes:
        iterations: Iterations of the validations.
        mean: Mean of the metric.
        spread: Half of the height of the band around it.
        seconds: Seconds per iteration, or None if not measured.
    """

    iterations: Sequence[int]
    mean: Sequence[float] | np.ndarray
    spread: Sequence[float] | np.ndarray
    seconds: float | None = None


def comparison_figure(title: str, panels: Mapping[str, Mapping[str, Band]], note: str) -> Figure:
    """Draw one row per metric: against iterations, and against time if it was measured.

    Args:
        title: Title of the figure.
        panels: Maps metric → name of a backbone → its curve.
        note: Line below the title: what curves and bands are.
    """
    timed = all(band.seconds for bands in panels.values() for band in bands.values())
    figure = Figure(figsize=(12 if timed else 6.4, 0.8 + 4 * len(panels)), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(f'{title}\n{note}', fontsize=11)
    rows = figure.subplots(len(panels), 1 + timed, squeeze=False)
    for row, (metric, bands) in zip(rows, panels.items(), strict=True):
        for number, (name, band) in enumerate(bands.items()):
            color = COLORS[number % len(COLORS)]
            label = f'{name}: {band.mean[-1]:.1f} ± {band.spread[-1]:.1f}'
            scales = (1, band.seconds / 60) if timed and band.seconds else (1,)
            for axis, scale in zip(row, scales, strict=True):
                x = [scale * iteration for iteration in band.iterations]
                low, high = (
                    [m + sign * s for m, s in zip(band.mean, band.spread, strict=True)]
                    for sign in (-1, 1)
                )
                axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
                axis.plot(x, band.mean, 'o-', color=color, markersize=4, label=label)
        labels = ('iteration', 'minutes of training')
        for axis, label in zip(row, labels, strict=False):
            top = 1.05 * axis.get_ylim()[1]
            axis.set(xlabel=label, ylabel=metric, ylim=(0, top), xlim=(0, None))
            axis.grid(color='#e5e7eb', linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[['top', 'right']].set_visible(False)
        row[0].legend(
            title='after the last iteration', fontsize=9, frameon=False, loc='lower right'
        )
    return figure


def plot_comparison(
    out_file: str | os.PathLike, title: str, panels: Mapping[str, Mapping[str, Band]], note: str
) -> Path:
    """Write the figure of :func:`comparison_figure` as a PNG file and return its path.

    An existing file is replaced atomically.
    """
    content = figure_png(comparison_figure(title, panels, note), dpi=120)
    return write_atomically(Path(out_file), content)
