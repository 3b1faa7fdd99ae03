"""GC ViT (Global Context Vision Transformer) backbone for mmdet, mmseg and mmpretrain."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .files import config_path
from .version import __version__

if TYPE_CHECKING:
    from .models import GCViT

try:
    if find_spec('mmengine') is None:  # from either distribution: mmengine or onedl-mmengine
        raise ModuleNotFoundError(name='mmengine')
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'mmgcvit requires mmengine, which is not installed. To use only the backbone, run `pip '
        'install mmengine` or `pip install onedl-mmengine`. For detectors, segmentors and '
        "classifiers, in a checkout of mmgcvit, run `pip install '.[openmmlab]'` or `pip install "
        "'.[onedl]'`. Do not install both distributions in one environment.",
        name='mmengine',
    ) from error

__all__ = ['GCViT', '__version__', 'config_path']


def __getattr__(name: str) -> object:
    # on first use, because the command mmgcvit imports this package, and torch takes seconds
    if name == 'GCViT':
        from .models import GCViT

        return GCViT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
