"""Memory that is kept: touching fresh memory takes longer than computing in it."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from .graph_mode import is_eager_on_cpu


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple, Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return uninitialized memory of a CPU, valid until the next call with this name.

    Each thread has its own.
    """
    size = math.prod(shape)
    buffer = _buffers.tensors.get((name, dtype))
    if buffer is None or len(buffer) < size:
        # a tensor of inference mode cannot be written outside of it
        with torch.inference_mode(False):
            buffer = _buffers.tensors[name, dtype] = torch.empty(size, dtype=dtype)
    return buffer[:size].view(shape)


def can_be_scratch(like: Tensor) -> bool:
    """Whether what is computed from a tensor may be written to memory that is used again."""
    return is_eager_on_cpu(like) and not torch.is_grad_enabled()
