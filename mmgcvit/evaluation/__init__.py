"""Label maps of tests as files, and test-time augmentation."""

from .metrics import DumpLabelMaps, adapt_dump
from .tta import adapt_tta

__all__ = ['DumpLabelMaps', 'adapt_dump', 'adapt_tta']
