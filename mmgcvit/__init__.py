"""GC ViT (Global Context Vision Transformer) for OpenMMLab's dense prediction libraries."""

try:
    import mmengine  # noqa: F401  (from either distribution: mmengine or onedl-mmengine)
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        'mmgcvit requires mmengine, which is not installed. To use only the backbone, run `pip '
        'install mmengine` or `pip install onedl-mmengine`; for detectors and segmentors, run '
        "`pip install 'mmgcvit[openmmlab]'` or `pip install 'mmgcvit[onedl]'`. Do not install "
        'both distributions in one environment.',
        name='mmengine',
    ) from error

from .models import GCViT
from .version import __version__

__all__ = ['GCViT', '__version__']
