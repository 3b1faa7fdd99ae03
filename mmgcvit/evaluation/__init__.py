"""Metrics, dumps of predictions, test-time augmentation, and tests of large images in tiles."""

from .metrics import DumpLabelMaps, adapt_dump
from .panoptic import PanopticMetric
from .tile_options import adapt_tiles, add_tile_options, keep_polygons, tile_options
from .tta import adapt_tta

__all__ = [
    'DumpLabelMaps',
    'PanopticMetric',
    'adapt_dump',
    'adapt_tiles',
    'adapt_tta',
    'add_tile_options',
    'keep_polygons',
    'tile_options',
]
