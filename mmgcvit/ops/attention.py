"""Attention within windows: what the network calls, and the choice of how it is computed.

B: batch size, L: tokens of a feature map in the order of its windows, C: channels, w: window size,
h: heads, d = C/h: channels per head, k: 3 if query, key and value are projected from the tokens, 2
if key and value are, nW: windows of a region in one feature map, n: tokens of a window, m: its
keys: n or, with the key that stands for the padding, n + 1.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bias_cache import cached_position_biases, forget_position_biases
from .by_region import Inputs, attend_by_region, attention_weights, fused, plain, split_regions
from .cpu_attention import CPUAttention
from .graph_mode import fx_leaf, is_eager_on_cpu, is_transformed
from .windows import Region, Windows

SETTING = 'MMGCVIT_ATTENTION'
# read once; the name of the backend that computes everything, None for the first that serves
forced_backend = os.environ.get(SETTING) or None


@fx_leaf
def window_attention(
    qkv: Tensor,
    windows: Windows,
    bias_table: Tensor,
    global_query: Tensor | None,
    padding: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(q kᵀ/√d + b) v of each window (paper, section 2.2 and equation 6).

    Args:
        qkv: (B, L, k·C), what the tokens are projected to.
        windows: Their order, from :func:`.window_layout`.
        bias_table: ((2w-1)², h), the position bias of each offset.
        global_query: (B, w², C), queries of every window of an image in place of those of its
            tokens; then k is 2. None for local attention, k is 3.
        padding: (1, k·C), what a padded token is projected to, from :func:`.project_padding`.
        dropout: Rate at which attention weights are dropped.

    Returns:
        (B, L, C).

    Raises:
        ValueError: If the setting ``MMGCVIT_ATTENTION`` names no backend, or one that cannot
            compute this.
    """
    inputs = _inputs(qkv, windows, bias_table, global_query, padding, dropout)
    return _choose(inputs).attend(inputs)


def attention_probabilities(
    qkv: Tensor,
    windows: Windows,
    bias_table: Tensor,
    global_query: Tensor | None,
    padding: Tensor | None,
) -> list[tuple[Region, Tensor]]:
    """Return the weights softmax(q kᵀ/√d + b), by which attention multiplies the values.

    The arguments are those of :func:`window_attention`.

    Returns:
        For each region (B, nW, h, n, m): windows row by row, queries and keys row by row. Where
        windows are padded, the last key stands for all padded tokens together.
    """
    inputs = _inputs(qkv, windows, bias_table, global_query, padding, dropout=0.0)
    return [
        (region, attention_weights(query, key, bias).unflatten(0, (-1, region.num_windows)))
        for region, query, key, _, bias in split_regions(inputs)
    ]


def _inputs(
    qkv: Tensor,
    windows: Windows,
    bias_table: Tensor,
    global_query: Tensor | None,
    padding: Tensor | None,
    dropout: float,
) -> Inputs:
    if padding is not None:
        padding = padding.to(qkv.dtype)
        qkv = windows.fill_padding(qkv, padding)
    if global_query is not None:
        global_query = global_query.to(qkv.dtype)
    return Inputs(qkv, windows, bias_table, global_query, padding, dropout)


@dataclass(frozen=True)
class Backend:
    """One way to compute attention.

    Attributes:
        attend: Takes the inputs, returns (B, L, C).
        serves: Whether it can compute these inputs.
        when: The same in words.
    """

    attend: Callable[[Inputs], Tensor]
    serves: Callable[[Inputs], bool]
    when: str


def _attend_on_cpu(inputs: Inputs) -> Tensor:
    if torch.is_grad_enabled():
        forget_position_biases(inputs.bias_table)
        return CPUAttention.apply(*inputs[:-1])
    biases = cached_position_biases(inputs.bias_table, inputs.windows, inputs.qkv.dtype)
    return attend_by_region(inputs, fused, biases)


# The first that serves the inputs computes them: a kernel is one more entry, before 'fused'.
BACKENDS = {
    'cpu': Backend(
        _attend_on_cpu,
        lambda inputs: is_eager_on_cpu(inputs.qkv) and inputs.dropout == 0,
        'on a CPU without attn_drop_rate, outside graph modes and torch.func',
    ),
    'fused': Backend(
        lambda inputs: attend_by_region(inputs, fused),
        lambda inputs: not is_transformed(),
        'outside torch.func and forward-mode differentiation',
    ),
    'plain': Backend(
        lambda inputs: attend_by_region(inputs, plain), lambda inputs: True, 'everywhere'
    ),
}


def _choose(inputs: Inputs) -> Backend:
    if forced_backend is None:
        return next(backend for backend in BACKENDS.values() if backend.serves(inputs))
    if forced_backend not in BACKENDS:
        raise ValueError(
            f'{SETTING}={forced_backend} is not allowed: choose one of {", ".join(BACKENDS)}, or '
            'leave it unset'
        )
    backend = BACKENDS[forced_backend]
    if not backend.serves(inputs):
        raise ValueError(
            f'{SETTING}={forced_backend} cannot compute this attention: it works '
            f'{backend.when}; leave {SETTING} unset'
        )
    return backend
