"""Plot of the time per pixel over the image size, with one line per backbone."""

import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_atomically
from .curves import COLORS
from .png import figure_png

Shape = tuple[int, int]


def plot_cost_per_pixel(
    panels: Mapping[str, Mapping[str, Mapping[Shape, float]]], out_file: str | os.PathLike
) -> Path:
    """Plot the time per pixel in microseconds over the image sizes, in ascending order.

    Args:
        panels: Maps panel title → backbone → (height, width) of the images → seconds per image.
        out_file: PNG file to write. An existing file is replaced atomically.

    Returns:
        The path of the file.

    Raises:
        ValueError: If ``out_file`` does not end in .png or there is nothing to plot.
    """
    out_file = Path(out_file).expanduser()
    if out_file.suffix.lower() != '.png':
        raise ValueError(f'out_file must end in .png, got {str(out_file)!r}')
    shapes = sorted(
        {shape for lines in panels.values() for line in lines.values() for shape in line},
        key=_pixels,
    )
    if not shapes:
        raise ValueError('nothing to plot: no backbone was measured; pass at least one measurement')
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout='constrained')
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (name, line) in enumerate(lines.items()):
            measured = [shape for shape in shapes if shape in line]
            axes.plot(
                [shapes.index(shape) for shape in measured],
                [1e6 * line[shape] / _pixels(shape) for shape in measured],
                'o-',
                label=name,
                color=COLORS[number % len(COLORS)],
            )
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        # evenly spaced, since the labels of similar sizes would overlap
        axes.set_xticks(
            range(len(shapes)),
            [f'{height}×{width}' for height, width in shapes],
            rotation=30,
            ha='right',
        )
        axes.set_title(title)
        axes.set_xlabel('image size (height × width)')
        axes.set_ylabel('time per pixel (µs)')
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()
    write_atomically(out_file, figure_png(figure, dpi=150))
    return out_file


def _pixels(shape: Shape) -> int:
    return shape[0] * shape[1]
