from .arch import ARCHS, Arch
from .gcvit import GCViT
from .variants import VARIANTS, GCViTVariant

__all__ = ['ARCHS', 'VARIANTS', 'Arch', 'GCViT', 'GCViTVariant']
