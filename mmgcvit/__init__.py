"""GC ViT (Global Context Vision Transformer) for OpenMMLab's dense prediction libraries."""

try:
    import mmengine  # noqa: F401  (either distribution of it: mmengine or onedl-mmengine)
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        'mmgcvit needs mmengine, which is not installed. For the backbone alone: `pip install '
        'mmengine` or `pip install onedl-mmengine`; for detectors and segmentors one of '
        "`pip install 'mmgcvit[openmmlab]'` or `pip install 'mmgcvit[onedl]'`. Never both "
        'in one environment.',
        name='mmengine',
    ) from error

from .models import GCViT
from .version import __version__

__all__ = ['GCViT', '__version__']
