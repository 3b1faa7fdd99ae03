"""Activations that are cheaper to compute again than to keep for the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .graphs import is_recorded


def linear_of(cheap: Callable[[Tensor], Tensor], linear: nn.Linear, x: Tensor) -> Tensor:
    """Return linear(cheap(x)) and keep x for the backward pass, but not cheap(x).

    The backward pass computes cheap(x) again and no product; hooks on a norm hear of both. What
    compiles the network chooses by itself what to keep.

    Args:
        cheap: A norm or an activation, without randomness.
        linear: Its weights' gradients need cheap(x).
        x: (..., C).

    Returns:
        (..., C'), C' the channels of the linear layer.
    """
    if not torch.is_grad_enabled() or is_recorded():
        return linear(cheap(x))
    return checkpoint(lambda x: linear(cheap(x)), x, use_reentrant=False, preserve_rng_state=False)
