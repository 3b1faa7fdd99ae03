"""Window attention for training on a CPU, without materializing all scores.

PyTorch's fused attention for CPUs computes no gradient for the position bias. If the bias requires
a gradient, PyTorch saves the scores of every block instead. Here, the backward pass recomputes
them for a few windows and heads at a time.

B: batch size, L: tokens of a feature map in window order, C: channels, w: window size, h: heads,
d = C/h: channels per head, k: 3 if query, key and value are projected from the tokens, 2 if only
key and value are, nW: windows of a region per feature map, n: tokens per window, m: keys per
window, which is n, or n + 1 with the extra key that represents the padding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .by_region import (
    Inputs,
    append_token,
    attend_by_region,
    fused,
    heads_of,
    padding_by_head,
    plain,
)
from .position_bias import position_biases_backward, reversed_position_biases
from .scratch import scratch
from .windows import Windows

# Scores that the backward pass computes at a time: 4 heads of one window of 24² tokens (5 MB in
# float32) fit into the cache of a processor.
SCORES_IN_BACKWARD = 4 * 24**4


class CPUAttention(torch.autograd.Function):
    """:func:`.attend_by_region` with a backward pass that recomputes the scores.

    ``apply`` takes the fields of :class:`.Inputs` except dropout.
    """

    @staticmethod
    def forward(
        qkv: Tensor,
        windows: Windows,
        bias_table: Tensor,
        global_query: Tensor | None,
        padding: Tensor | None,
    ) -> Tensor:
        # PyTorch selects the kernel by the bias's requires_grad, even if autograd records nothing
        inputs = Inputs(qkv, windows, bias_table.detach(), global_query, padding)
        return attend_by_region(inputs, fused)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        qkv, ctx.windows, *tensors = inputs
        ctx.save_for_backward(qkv, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *tensors = ctx.saved_tensors
        inputs = Inputs(qkv, ctx.windows, *tensors)
        if torch.is_grad_enabled():
            return _differentiable_gradients(inputs, grad_out, ctx.needs_input_grad)
        return _gradients(inputs, grad_out)


def _differentiable_gradients(
    inputs: Inputs, grad_out: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again, computed with plain operations."""
    # One input may be computed from another, for example tokens from the padding. Differentiation
    # with respect to views keeps their gradients separate, and autograd adds them afterwards.
    views = {n: x.view_as(x) for n, x in inputs._asdict().items() if isinstance(x, Tensor)}
    inputs = inputs._replace(**views)
    learning = [x for x, needs in zip(inputs[:-1], needed, strict=True) if needs]
    grads = iter(
        torch.autograd.grad(
            attend_by_region(inputs, plain),
            learning,
            grad_out,
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(grads) if needs else None for needs in needed)


def _gradients(inputs: Inputs, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of each input except the dropout rate."""
    qkv, windows, table, global_query, padding, _ = inputs
    # half precision is slow on CPUs, and differences of scores would cancel
    accum_dtype = torch.promote_types(torch.promote_types(qkv.dtype, table.dtype), torch.float32)
    sums = (
        None if x is None else torch.zeros_like(x, dtype=accum_dtype)
        for x in (global_query, padding)
    )
    grads = Inputs(torch.empty_like(qkv), windows, table, next(sums), next(sums))
    biases, grad_biases = list(reversed_position_biases(table.to(accum_dtype), windows)), []
    split = (windows.split(x) for x in (qkv, grads.qkv, grad_out))
    for region, bias, part, grad_part, grad in zip(windows.regions, biases, *split, strict=True):
        grad = grad.unflatten(1, (region.num_windows, region.num_tokens))
        grad = grad.unflatten(-1, inputs.qkv_dims[1:]).transpose(2, 3)
        grad_query, *grad_key_value = heads_of(grad_part, region, grads)
        if global_query is not None:
            grad_query = grad_key_value[0].new_empty(grad_query.shape)
        grad_bias = _region_gradients(
            (*heads_of(part, region, inputs), grad),
            padding_by_head(inputs) if windows.is_partial(region) else (),
            bias,
            (grad_query, *grad_key_value),
            padding_by_head(grads) if windows.is_partial(region) else (),
        )
        grad_biases.append(grad_bias)
        if grads.global_query is not None:
            w, size = windows.window_size, (region.height, region.width)
            into = grads.global_query.unflatten(1, (w, w))[:, : size[0], : size[1]]
            into += grad_query.sum(1).transpose(1, 2).flatten(2).unflatten(1, size)
    grad_table = position_biases_backward(grad_biases, biases, table, windows)
    # autograd casts the float32 sums to the dtypes of the inputs
    return grads.qkv, None, grad_table, grads.global_query, grads.padding


def _region_gradients(
    heads: Sequence[Tensor],
    padding: Sequence[Tensor],
    bias: tuple[Tensor, Tensor | None],
    grads: Sequence[Tensor],
    grad_padding: Sequence[Tensor],
) -> Tensor:
    """Write the gradients of a region's inputs and return the gradient of its bias.

    Keys are in reverse order, see :func:`.reversed_position_biases`. The padding is the last key.

    Args:
        heads: Query, key, value and gradient of the output, (B, nW, h, n, d) each.
        padding: Key and value of the padding, (1, h, d) each. Empty without padding.
        bias: Bias for tokens, (h, height, width, n), and bias for the padding, (h, n) or None.
        grads: Tensors to which the gradients of query, key and value are written.
        grad_padding: Tensors to which the gradients of ``padding`` are added.

    Returns:
        (h, n, m).
    """
    bias, bias_of_padding = bias
    n, d = heads[0].shape[-2:]
    m = n if bias_of_padding is None else n + 1
    accum_dtype, size = bias.dtype, bias.shape[1:3]
    grad_bias = bias.new_empty(len(bias), n, m)
    if not len(heads[0]):
        # the loop below writes nothing for an empty batch
        grad_bias.zero_()
    for part in _parts(heads[0].shape[:3], n * m):
        of_heads = part[-1]
        query, key, value, grad_out = (x[part].to(accum_dtype).flatten(0, 1) for x in heads)
        window_heads = query.shape[:2]
        query = torch.mul(query, d**-0.5, out=query.new_empty(query.shape))
        key, value = key.flip(2), value.flip(2)
        if m > n:
            tokens = (token[:, of_heads].to(accum_dtype) for token in padding)
            key, value = map(append_token, (key, value), tokens)
        query, key, value, grad_out = (x.flatten(0, 1) for x in (query, key, value, grad_out))
        scores, weights = scratch('scores', (2, len(query), n, m), accum_dtype)
        by_window = torch.bmm(query, key.mT, out=scores).unflatten(0, window_heads)
        by_window.unflatten(2, size)[..., :n] += bias[of_heads]
        if bias_of_padding is not None:
            by_window[..., n] += bias_of_padding[of_heads]
        torch.softmax(scores, -1, out=weights)
        grad_value = torch.bmm(weights.mT, grad_out)
        torch.bmm(grad_out, value.mT, out=scores)
        torch._softmax_backward_data(scores, weights, -1, accum_dtype, grad_input=scores)
        grad_query = torch.bmm(scores, key).mul_(d**-0.5)
        grad_key = torch.bmm(scores.mT, query)
        for i, window in enumerate(by_window):
            # the first window of the first image initializes the sum
            if i == part[0].start == part[1].start:
                grad_bias[of_heads] = window
            else:
                grad_bias[of_heads] += window
        grad_query, grad_key, grad_value = (
            x.unflatten(0, window_heads) for x in (grad_query, grad_key, grad_value)
        )
        if m > n:
            for into, grad in zip(grad_padding, (grad_key, grad_value), strict=True):
                into[:, of_heads] += grad[:, :, n].sum(0)
        grad_key, grad_value = (x[:, :, :n].flip(2) for x in (grad_key, grad_value))
        for into, grad in zip(grads, (grad_query, grad_key, grad_value), strict=True):
            into[part] = grad.view(into[part].shape)
    return grad_bias


def _parts(shape: Sequence[int], scores: int) -> Iterator[tuple[slice, ...]]:
    """Split images, windows and heads into parts with a limited number of scores.

    Args:
        shape: (B, nW, h).
        scores: Number of scores of one head of one window.
    """
    images, windows, heads = shape
    heads_at_a_time = max(1, SCORES_IN_BACKWARD // scores)
    windows_at_a_time = max(1, SCORES_IN_BACKWARD // (heads * scores))
    images_at_a_time = max(1, SCORES_IN_BACKWARD // (windows * heads * scores))
    for i in range(0, images, images_at_a_time):
        for j in range(0, windows, windows_at_a_time):
            for k in range(0, heads, heads_at_a_time):
                yield (
                    slice(i, i + images_at_a_time),
                    slice(j, j + windows_at_a_time),
                    slice(k, k + heads_at_a_time),
                )
