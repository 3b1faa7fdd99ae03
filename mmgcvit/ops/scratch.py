"""Memory that is kept: touching fresh memory takes longer than computing in it."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .graph_mode import is_recorded, is_transformed


class _Kept(threading.local):
    def __init__(self) -> None:
        self.tensors: dict[tuple, Tensor] = {}


_kept = _Kept()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return uninitialized memory of a CPU, valid until the next call with this name.

    Each thread has its own.
    """
    size = math.prod(shape)
    found = _kept.tensors.get((name, dtype))
    if found is None or len(found) < size:
        # a tensor of inference mode cannot be written outside of it
        with torch.inference_mode(False):
            found = _kept.tensors[name, dtype] = torch.empty(size, dtype=dtype)
    return found[:size].view(shape)


def can_be_scratch(like: Tensor) -> bool:
    """Whether what is computed from a tensor may be written to memory that is used again."""
    is_plain = type(like) in (Tensor, nn.Parameter) and like.device.type == 'cpu'
    return is_plain and not (torch.is_grad_enabled() or is_recorded() or is_transformed())
