"""Synthetic datasets."""

from .shapes import Settings, draw_shapes

__all__ = ['Settings', 'draw_shapes']
