"""Pictures of maps over an image: one map at the image's own resolution, or a sheet of many.

H, W: height and width of an image in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .png import figure_png

COLORS = 'turbo'  # hue shows the value, so that it is not confused with the image's brightness
OPACITY = 0.6
DPI = 100
MIN_WIDTH, MIN_PANEL = 460, 158  # pixels of a map and of a panel, so that their titles fit
MARGIN, TITLE, BAR = 10, 46, 92  # pixels around a map: at its edges, above, on the right
PANEL = 230  # width or height of a panel of a sheet in pixels, whichever is larger
HALO: dict[str, Any] = dict(edgecolor='black', facecolor='none', linewidth=3)
LINE: dict[str, Any] = dict(edgecolor='white', facecolor='none', linewidth=1.3)


@dataclass(frozen=True)
class Panel:
    """A map over an image, with marks.

    Attributes:
        title: One or two lines.
        values: Map, (H, W), or RGB from 0 to 1, (H, W, 3). NaN where there is no value. None
            shows the image alone.
        unit: Meaning of the values.
        token: x and y of a token's pixel.
        rectangle: Top, left, height and width of a window or box in pixels.
        outline: Mask whose outline is drawn, (H, W).
        rows: y of horizontal lines within ``area``.
        columns: x of vertical lines within ``area``.
        area: Rows and columns of the image in which lines are drawn. None for all.
    """

    title: str
    values: np.ndarray | None = None
    unit: str = ''
    token: tuple[int, int] | None = None
    rectangle: tuple[float, float, float, float] | None = None
    outline: np.ndarray | None = None
    rows: Sequence[float] | np.ndarray = ()
    columns: Sequence[float] | np.ndarray = ()
    area: tuple[slice, slice] | None = None

    @property
    def highest(self) -> float:
        """Value of the last color: the 99.8th percentile, which single peaks do not change."""
        assert self.values is not None  # an image alone has no colors
        values = self.values[np.isfinite(self.values)]
        return max(float(np.percentile(values, 99.8)), 1e-12) if values.size else 1.0


def principal_colors(features: np.ndarray) -> np.ndarray:
    """Return the first three principal components of features as RGB from 0 to 1.

    Args:
        features: Feature map, (h, w, C).

    Returns:
        (h, w, 3). Each component spans the range from 0 to 1. Similar features have similar colors.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    axes = axes[:3]
    # the sign of a component is arbitrary: make its largest weight positive
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    colors = np.zeros((len(flat), 3))
    colors[:, : len(axes)] = flat @ axes.T
    span = np.ptp(colors, axis=0)
    colors = (colors - colors.min(0)) / np.where(span > 0, span, 1)
    return colors.reshape(*features.shape[:2], 3).astype(np.float32)


def draw_panel(image: np.ndarray, panel: Panel) -> bytes:
    """Draw one map over an image, at the image's resolution or a multiple of it.

    Args:
        image: RGB, uint8, (H, W, 3).
        panel: The map.

    Returns:
        A PNG file.
    """
    height, width = image.shape[:2]
    factor = max(1, math.ceil(MIN_WIDTH / width))
    height, width = factor * height, factor * width
    bar = BAR if panel.values is not None and panel.values.ndim == 2 else MARGIN
    size = MARGIN + width + bar, TITLE + height + MARGIN
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((MARGIN / size[0], MARGIN / size[1], width / size[0], height / size[1]))
    _draw(axis, image, panel)
    axis.set_title(panel.title, fontsize=10, loc='left')
    if panel.values is not None and panel.values.ndim == 2:
        place = (MARGIN + width + 12) / size[0], MARGIN / size[1], 14 / size[0], height / size[1]
        colors = figure.colorbar(
            ScalarMappable(Normalize(0, panel.highest), COLORS),
            cax=figure.add_axes(place),
            extend='max' if np.nanmax(panel.values) > panel.highest else 'neither',
            alpha=OPACITY,
        )
        colors.ax.tick_params(labelsize=8)
        colors.set_label(panel.unit, fontsize=9)
    return figure_png(figure, DPI)


def draw_sheet(image: np.ndarray, rows: Sequence[Sequence[Panel | None]], title: str) -> bytes:
    """Draw a table of maps over small copies of an image.

    Args:
        image: RGB, uint8, (H, W, 3).
        rows: Rows of panels of equal length. None leaves a place empty.
        title: Title of the sheet.

    Returns:
        A PNG file.
    """
    scale = PANEL / max(image.shape[:2])
    height, width = (max(1, round(size * scale)) for size in image.shape[:2])
    num_columns = len(rows[0])
    cell = max(width, MIN_PANEL) + MARGIN, height + 36
    has_bar = any(
        panel is not None and panel.values is not None and panel.values.ndim == 2
        for row in rows
        for panel in row
    )
    below = 52 if has_bar else 6
    size = cell[0] * num_columns + MARGIN, cell[1] * len(rows) + 34 + below
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            left = MARGIN + j * cell[0]
            bottom = size[1] - 34 - (i + 1) * cell[1]
            axis = figure.add_axes(
                (left / size[0], bottom / size[1], width / size[0], height / size[1])
            )
            _draw(axis, image, panel)
            axis.set_title(panel.title, fontsize=7.5, loc='left', pad=3)
    figure.text(MARGIN / size[0], 1 - 8 / size[1], title, fontsize=10, va='top')
    if has_bar:
        place = MARGIN / size[0], 30 / size[1], min(260, size[0] // 2) / size[0], 10 / size[1]
        colors = figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLORS),
            cax=figure.add_axes(place),
            orientation='horizontal',
            alpha=OPACITY,
            ticks=[0, 1],
        )
        colors.ax.set_xticklabels(['0', 'maximum of the map'], fontsize=7.5)
        colors.ax.get_xticklabels()[1].set_horizontalalignment('right')
    return figure_png(figure, DPI)


def _draw(axis: Axes, image: np.ndarray, panel: Panel) -> None:
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    if panel.values is None:
        axis.imshow(image, extent=extent)
    else:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        axis.imshow(gray, cmap='gray', vmin=0, vmax=255, extent=extent)
        values = np.ma.masked_invalid(panel.values)
        if values.ndim == 3:
            has_value = ~np.ma.getmaskarray(values).any(2)
            values = np.dstack([values.filled(0), OPACITY * has_value])
            axis.imshow(values, extent=extent, interpolation='nearest')
        else:
            axis.imshow(
                values,
                cmap=COLORS,
                vmin=0,
                vmax=panel.highest,
                alpha=OPACITY,
                extent=extent,
                interpolation='nearest',
            )
    rows, columns = panel.area or (slice(0, height), slice(0, width))
    style: dict[str, Any] = dict(colors='white', linewidths=0.8)
    axis.hlines(panel.rows, columns.start, columns.stop, **style)
    axis.vlines(panel.columns, rows.start, rows.stop, **style)
    if panel.outline is not None and panel.outline.any():
        inside = panel.outline.astype(float)
        for color, line in (('black', 3), ('white', 1.3)):
            axis.contour(
                inside, [0.5], colors=color, linewidths=line, extent=extent, origin='upper'
            )
    if panel.rectangle is not None:
        top, left, rows, columns = panel.rectangle
        for style in (HALO, LINE):
            axis.add_patch(Rectangle((left, top), columns, rows, **style))
    if panel.token is not None:
        x, y = (at + 0.5 for at in panel.token)
        axis.plot(x, y, 'P', color='white', markeredgecolor='black', markersize=9)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_axis_off()
