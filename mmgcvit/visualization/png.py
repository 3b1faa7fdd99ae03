"""Figures as PNG files."""

import io

from matplotlib.figure import Figure


def figure_png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as the content of a PNG file."""
    png = io.BytesIO()
    figure.savefig(png, format='png', dpi=dpi)
    return png.getvalue()
