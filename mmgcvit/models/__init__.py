from .arch import ARCHS, Arch
from .gcvit import GCViT

__all__ = ['ARCHS', 'Arch', 'GCViT']
