"""Multi-scale deformable attention, under the names and arguments of ``mmcv._ext``.

The work is mmcv's own form of it in PyTorch, which mmcv uses on a CPU.

Letters: N images, P pixels of all levels, H heads, D channels of a head, Q queries, L levels,
S sampling points.
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
    """Return what queries gather from the levels of a feature pyramid.

    Args:
        value: (N, P, H, D).
        spatial_shapes: Height and width of each level, (L, 2).
        level_start_index: First pixel of each level, (L). Not used: it follows from the shapes.
        sampling_loc: x, y of points in 0 to 1, (N, Q, H, L, S, 2).
        attn_weight: (N, Q, H, L, S).
        im2col_step: Of mmcv's own operator; not used.

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
    """Write the gradients of values, sampling points and weights."""
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

    # numbers of Python: splitting by those of a GPU waits for it at every level
    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), sampling_loc, attn_weight)
