"""The network, its sizes and the variants of the ablations."""

from .arch import ARCHS, Arch
from .gcvit import GCViT
from .variants import VARIANTS, GCViTVariant

__all__ = ['ARCHS', 'VARIANTS', 'Arch', 'GCViT', 'GCViTVariant']
