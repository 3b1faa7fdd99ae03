"""Attention within windows, its scores never all in memory.

B: batch size, T: tokens of a batch in the order of the windows, w: window side, h: heads, d:
channels a head, k: 3 if query, key and value are projected from the tokens, 2 if key and value are,
nW: windows of a batch in a region, n: real tokens of a window, m: its keys, n or, with the one that
stands for the padding, n + 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .graphs import is_exporting
from .position_bias import position_bias, position_bias_backward
from .windows import Region, WindowLayout, join

# at a time, few enough for a processor's cache: four heads of a window of 24² tokens, 5 MB
SCORES_IN_BACKWARD = 4 * 24**4


def attend(
    layout: WindowLayout,
    projected: Tensor,
    global_query: Tensor | None,
    padded: Tensor,
    biases: Sequence[Tensor],
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(q kᵀ/√d + b) v of each window (paper, equation 4).

    Args:
        layout: The order of the windows.
        projected: (T, k, h, d).
        global_query: (B, w, w, h, d), asked by every window of an image instead of its tokens' own
            queries; or None.
        padded: (2, h, d), key and value of every padded token.
        biases: (h, n, m) for each region, see :func:`.position_bias`.
        dropout: Rate at which weights are dropped.

    Returns:
        (T, h, d).
    """
    out = []
    for region, part, bias in zip(layout.regions, layout.split(projected), biases, strict=True):
        query, key, value = _heads_first(part, global_query, layout.batch, region)
        if region.num_tokens < layout.window_size**2:
            key, value = _append(key, padded[0]), _append(value, padded[1])
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias[None], dropout_p=dropout
        )
        attended = attended.transpose(1, 2)
        if is_exporting():
            # the exporter to ONNX lays out what its attention returns in another way than PyTorch
            # does, and would find that the graph has a view of it where a copy is needed
            attended = attended.clone(memory_format=torch.contiguous_format)
        out.append(attended.flatten(0, 1))
    return join(out)


class RecomputedAttention(torch.autograd.Function):
    """:func:`attend` for training on a CPU, from the table of position biases.

    PyTorch's fused attention for CPUs gives the bias no gradient: with one that learns, PyTorch
    keeps the scores of every block. Here the backward pass computes them again, for a few windows
    and heads at a time, and the biases too.

    Arguments of ``apply``: layout, projected, global_query and padded of :func:`attend`, table of
    :func:`.position_bias`.
    """

    @staticmethod
    def forward(
        layout: WindowLayout,
        projected: Tensor,
        global_query: Tensor | None,
        padded: Tensor,
        table: Tensor,
    ) -> Tensor:
        # PyTorch chooses by what the bias says of itself, though nothing is recorded here
        table = table.detach()
        biases = [_bias(table, layout, region, projected) for region in layout.regions]
        return attend(layout, projected, global_query, padded, biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        layout, *tensors = inputs
        ctx.layout = layout
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        projected, global_query, padded, table, out = ctx.saved_tensors
        grad_projected = torch.empty_like(projected)
        grad_global_query, grad_padded, grad_table = (
            None if x is None else torch.zeros_like(x, dtype=_sum_type(x))
            for x in (global_query, padded, table)
        )
        # of a softmax P = softmax(S): dS_ij = P_ij (dP_ij - Σ_j P_ij dP_ij); the sum is dO_i · O_i
        mean = (grad_out.to(_sum_type(out)) * out).sum(-1, keepdim=True)
        split = (layout.split(x) for x in (projected, grad_projected, grad_out, mean))
        for region, part, grad_part, *outer in zip(layout.regions, *split, strict=True):
            inputs = _heads_first(part, global_query, layout.batch, region)
            grads = list(_heads_first(grad_part, global_query, layout.batch, region))
            if global_query is not None:
                grads[0] = torch.empty_like(inputs[0])
            outer = [
                x.unflatten(0, (len(inputs[0]), region.num_tokens)).transpose(1, 2) for x in outer
            ]
            bias = _bias(table, layout, region, projected)
            grad_bias = _backward(inputs, padded, bias, outer, grads, grad_padded)
            grad_table += position_bias_backward(
                grad_bias, bias, table, layout.window_size, region.height, region.width
            )
            if global_query is not None:
                grad_query = (
                    grads[0].unflatten(0, (layout.batch, region.num_windows)).sum(1).transpose(1, 2)
                )
                grad_query = grad_query.unflatten(1, (region.height, region.width))
                grad_global_query[:, : region.height, : region.width] += grad_query
        # autograd casts sums in float32 back
        return None, grad_projected, grad_global_query, grad_padded, grad_table


def _backward(
    inputs: Sequence[Tensor],
    padded: Tensor,
    bias: Tensor,
    outer: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_padded: Tensor,
) -> Tensor:
    """Write a region's gradients and return that of the bias, (h, n, m).

    Args:
        inputs: Query, key and value, (nW, h, n, d) each.
        padded: (2, h, d), key and value of the padding.
        bias: (h, n, m).
        outer: Gradient of the output, (nW, h, n, d), and for each query the mean of its weights'
            gradients, weighted by these, (nW, h, n, 1).
        grads: Where the gradients of ``inputs`` are written.
        grad_padded: Where that of ``padded`` is added.
    """
    windows, heads, n, d = inputs[0].shape
    m = bias.shape[-1]
    # In half precision differences of scores cancel, and CPUs multiply slowly: computed in single.
    exact = _sum_type(bias)
    padded, bias = padded.to(exact), bias.to(exact)
    grad_bias = torch.zeros_like(bias)
    # kept, since touching fresh memory takes longer than computing in it
    buffers = bias.new_empty(2, max(SCORES_IN_BACKWARD, n * m))
    for part in _parts(windows, heads, n * m):
        of_heads = part[1]
        query, key, value, grad_out, mean = (x[part].to(exact) for x in (*inputs, *outer))
        shape = query.shape[:2]
        if m > n:
            key, value = _append(key, padded[0, of_heads]), _append(value, padded[1, of_heads])
        query = query * d**-0.5
        query, key, value, grad_out, mean = (
            x.flatten(0, 1) for x in (query, key, value, grad_out, mean)
        )
        scores, weights = buffers[:, : shape.numel() * n * m].view(2, -1, n, m)
        torch.bmm(query, key.mT, out=scores).unflatten(0, shape).add_(bias[of_heads])
        torch.softmax(scores, -1, out=weights)
        grad_scores = torch.bmm(grad_out, value.mT, out=scores).sub_(mean).mul_(weights)
        grad_bias[of_heads] += _sum(grad_scores.unflatten(0, shape))
        grads[0][part] = torch.bmm(grad_scores, key).mul_(d**-0.5).unflatten(0, shape)
        grad_key, grad_value = torch.bmm(grad_scores.mT, query), torch.bmm(weights.mT, grad_out)
        for i, grad in enumerate((grad_key, grad_value)):
            grad = grad.unflatten(0, shape)
            grads[i + 1][part] = grad[:, :, :n]
            if m > n:
                grad_padded[i, of_heads] += grad[:, :, n].sum(0)
    return grad_bias


def _heads_first(
    projected: Tensor, global_query: Tensor | None, batch: int, region: Region
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of a region, (nW, h, n, d) each; of the tokens' own, views."""
    # in full, as -1 means nothing where there are no images
    projected = projected.unflatten(0, (batch * region.num_windows, region.num_tokens))
    *query, key, value = projected.permute(2, 0, 3, 1, 4).unbind()
    if query:
        return query[0], key, value
    real = global_query[:, : region.height, : region.width].flatten(1, 2).transpose(1, 2)
    real = real[:, None].expand(-1, region.num_windows, -1, -1, -1)
    return real.flatten(0, 1), key, value


def _append(x: Tensor, row: Tensor) -> Tensor:
    """Give each window one more token: (nW, h, n, d) and (h, d) → (nW, h, n + 1, d)."""
    return torch.cat([x, row[:, None].expand(len(x), -1, -1, -1)], 2)


def _bias(table: Tensor, layout: WindowLayout, region: Region, like: Tensor) -> Tensor:
    bias = position_bias(table, layout.window_size, region.height, region.width)
    return bias.to(like.dtype)


def _sum(x: Tensor) -> Tensor:
    """Sum over the first dimension; one alone is not copied."""
    return x[0] if len(x) == 1 else x.sum(0)


def _sum_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(windows: int, heads: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Cut windows and heads so that a part has few scores; ``scores`` are those of one head."""
    heads_at_a_time = max(1, min(heads, SCORES_IN_BACKWARD // scores))
    windows_at_a_time = max(1, SCORES_IN_BACKWARD // (heads * scores))
    for i in range(0, windows, windows_at_a_time):
        for j in range(0, heads, heads_at_a_time):
            yield slice(i, i + windows_at_a_time), slice(j, j + heads_at_a_time)
