"""GC ViT (Global Context Vision Transformer) backbone for mmdet, mmseg and mmpretrain."""

from .models import GCViT
from .version import __version__

__all__ = ['GCViT', '__version__']
