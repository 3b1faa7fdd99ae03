"""Reusable buffers: the first access to new memory takes longer than the computation in it."""

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
    """Return an uninitialized CPU tensor that is valid until the next call with the same name.

    Each thread has its own buffers.
    """
    size = math.prod(shape)
    buffer = _buffers.tensors.get((name, dtype))
    if buffer is None or len(buffer) < size:
        # tensors created in inference mode cannot be modified outside of it
        with torch.inference_mode(False):
            buffer = _buffers.tensors[name, dtype] = torch.empty(size, dtype=dtype)
    return buffer[:size].view(shape)


def can_be_scratch(like: Tensor) -> bool:
    """Whether results computed from a tensor may be stored in a reusable buffer."""
    return is_eager_on_cpu(like) and not torch.is_grad_enabled()
