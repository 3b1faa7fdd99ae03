"""Label maps of tests as files, and test-time augmentation."""

from .. import registry  # noqa: F401  (reports a missing mmengine)
from .metrics import DumpLabelMaps, adapt_dump
from .panoptic import PanopticMetric
from .tta import adapt_tta

__all__ = ['DumpLabelMaps', 'PanopticMetric', 'adapt_dump', 'adapt_tta']
