"""Parameters, FLOPs, memory and speed of models."""

from .complexity import (
    Complexity,
    build_on_meta,
    complexity_of,
    count_complexity,
    counted_shape,
)

__all__ = ['Complexity', 'build_on_meta', 'complexity_of', 'count_complexity', 'counted_shape']
