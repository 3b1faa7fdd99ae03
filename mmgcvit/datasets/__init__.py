"""Synthetic datasets."""

from .classes import draw_shape_classes
from .folder import DatasetMismatchError, Settings
from .shapes import draw_shapes

__all__ = ['DatasetMismatchError', 'Settings', 'draw_shape_classes', 'draw_shapes']
