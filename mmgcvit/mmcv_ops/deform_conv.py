"""Deformable convolution v1 and v2, with the names and arguments of ``mmcv._ext``.

The implementation uses torchvision's operator. ``columns``, ``ones`` and ``im2col_step`` control
the workspace of mmcv's own operator and are ignored.

N: number of images, C: channels, H, W: height and width of the input, h, w: height and width of the
output, K: kernel height times kernel width, G: number of deformable groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import at_least_float32


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution of ``input`` (N, C, H, W) to ``output``.

    ``offset`` is (N, 2GK, h, w), with y before x.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_forward(input, weight, offset, None, None, geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of the input and the offset."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _backward(grad_output, input, weight, offset, None, None, geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add the gradient of the weight, multiplied by ``scale``, to ``grad_weight``."""
    # torchvision computes all gradients at once, so a backward pass computes them twice. The
    # gradient of the weight does not depend on the weight, so any tensor of its shape will do.
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _backward(grad_output, input, grad_weight, offset, None, None, geometry)
    grad_weight += (grads[1] * scale).to(grad_weight.dtype)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution of ``input`` (N, C, H, W) to ``output``.

    ``offset`` is (N, 2GK, h, w), with y before x. ``mask`` is (N, GK, h, w).
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    bias = bias if with_bias else None
    output.copy_(_forward(input, weight, offset, mask, bias, geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of all inputs. Without a bias, ``grad_bias`` is not modified."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    bias = bias if with_bias else None
    grads = _backward(grad_output, input, weight, offset, mask, bias, geometry)
    results = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for result, grad in zip(results[: 4 + with_bias], grads, strict=False):
        result.copy_(grad)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Sequence[int],
) -> Tensor:
    tensors = _tensors(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of the input, weight, offset, mask and bias, in this order."""
    (grad,) = at_least_float32(grad)
    tensors = _tensors(input, weight, offset, mask, bias)
    backward = torch.ops.torchvision._deform_conv2d_backward
    return backward(grad, *tensors, *geometry, mask is not None)


def _tensors(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Return torchvision's arguments, with zeros for a missing mask or bias."""
    mask = input.new_zeros((len(input), 1)) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return at_least_float32(input, weight, offset, mask, bias)
