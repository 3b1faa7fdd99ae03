"""GC ViT (Global Context Vision Transformer) backbone for mmdet, mmseg and mmpretrain."""

try:
    import mmengine  # noqa: F401  (from either distribution: mmengine or onedl-mmengine)
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        'mmgcvit requires mmengine, which is not installed. To use only the backbone, run `pip '
        'install mmengine` or `pip install onedl-mmengine`. For detectors, segmentors and '
        "classifiers, in a checkout of mmgcvit, run `pip install '.[openmmlab]'` or `pip install "
        "'.[onedl]'`. Do not install both distributions in one environment.",
        name='mmengine',
    ) from error

from .models import GCViT
from .version import __version__

__all__ = ['GCViT', '__version__']
