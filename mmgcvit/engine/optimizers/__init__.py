from .layer_decay import LayerDecayOptimWrapperConstructor
from .mixed_precision import BFloat16OptimWrapper

__all__ = ['BFloat16OptimWrapper', 'LayerDecayOptimWrapperConstructor']
