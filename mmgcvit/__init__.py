"""GC ViT (Global Context Vision Transformer) backbone for mmdet, mmseg and mmpretrain."""

from typing import TYPE_CHECKING

from .installed import config_path
from .version import __version__

if TYPE_CHECKING:
    from .models import GCViT

__all__ = ['GCViT', '__version__', 'config_path']


def __getattr__(name: str) -> object:
    # on first use, because the command mmgcvit imports this package, and torch takes seconds
    if name == 'GCViT':
        from .models import GCViT

        return GCViT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
