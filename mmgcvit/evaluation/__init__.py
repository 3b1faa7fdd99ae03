from .. import registry  # noqa: F401  (reports a missing mmengine)
from .metrics import DumpLabelMaps, adapt_dump
from .tta import adapt_tta

__all__ = ['DumpLabelMaps', 'adapt_dump', 'adapt_tta']
