"""Multi-scale deformable attention, with the names and arguments of ``mmcv._ext``.

This uses mmcv's implementation in plain PyTorch, which mmcv itself uses on a CPU.

N: number of images, P: pixels of all levels, H: heads, D: channels per head, Q: queries,
L: levels, S: sampling points.
"""

import torch
from torch import Tensor

from .precision import at_least_float32


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the weighted sum of values at each query's sampling points.

    Args:
        value: Values, (N, P, H, D).
        spatial_shapes: Height and width of each level, (L, 2).
        level_start_index: Index of the first pixel of each level, (L,). Ignored, since it follows
            from ``spatial_shapes``.
        sampling_loc: Normalized coordinates x, y of the sampling points, from 0 to 1,
            (N, Q, H, L, S, 2).
        attn_weight: Attention weights, (N, Q, H, L, S).
        im2col_step: Parameter of mmcv's own operator. Ignored.

    Returns:
        (N, Q, H * D).
    """
    result = _attend(spatial_shapes, *at_least_float32(value, sampling_loc, attn_weight))
    return result.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of the values, sampling points and attention weights."""
    inputs = [
        tensor.detach().requires_grad_()
        for tensor in at_least_float32(value, sampling_loc, attn_weight)
    ]
    with torch.enable_grad():
        output = _attend(spatial_shapes, *inputs)
    grads = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    results = (grad_value, grad_sampling_loc, grad_attn_weight)
    for result, grad in zip(results, grads, strict=True):
        result.copy_(grad)


def _attend(shapes: Tensor, value: Tensor, sampling_loc: Tensor, attn_weight: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # converted to Python integers once; splitting by a GPU tensor synchronizes at every level
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), sampling_loc, attn_weight)
