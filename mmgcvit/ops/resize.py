"""Bicubic resizing of feature maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph_mode import fx_leaf, is_recorded, is_transformed


@fx_leaf
def resize_bicubic(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize feature maps as ``F.interpolate(x, size, mode='bicubic')``.

    (B, C, H, W) → (B, C, *size).

    On CUDA devices, matrix products are used. PyTorch's kernel has one thread per pixel of the
    output, which loops over the channels. It takes 2 ms for an output of 24×24 pixels on an H100,
    and its backward pass is not deterministic.
    """
    if not x.is_cuda or is_recorded() or is_transformed():
        return F.interpolate(x, tuple(size), mode='bicubic', align_corners=False)
    return _resize_by_products(x, size)


def _resize_by_products(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.shape[2:] == tuple(size):
        return x
    with torch.autocast(x.device.type, enabled=False):
        # as autocast does for F.interpolate
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        rows, columns = (_weights(old, new, x) for old, new in zip(x.shape[2:], size, strict=True))
        # The result is channels-last: fused attention does not support queries whose channels are
        # not contiguous.
        x = x.permute(0, 2, 3, 1)
        x = (rows @ x.flatten(2)).unflatten(2, x.shape[2:])
        return (columns @ x).permute(0, 3, 1, 2)


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """Return the weights of the old pixels in the new pixels of one dimension, (new, old)."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)
    weights = F.interpolate(identity[None, None], (new, old), mode='bicubic', align_corners=False)
    return weights[0, 0]
