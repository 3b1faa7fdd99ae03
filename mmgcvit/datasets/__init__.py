"""Synthetic datasets."""

from .shapes import DatasetMismatchError, Settings, draw_shapes

__all__ = ['DatasetMismatchError', 'Settings', 'draw_shapes']
