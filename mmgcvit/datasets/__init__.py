"""Datasets this package makes itself."""

from .shapes import draw_shapes

__all__ = ['draw_shapes']
