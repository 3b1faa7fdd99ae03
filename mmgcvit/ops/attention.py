"""Window attention: the functions that the network calls, and the selection of a backend.

B: batch size, L: tokens of a feature map in window order, C: channels, w: window size, h: heads,
d = C/h: channels per head, k: 3 if query, key and value are projected from the tokens, 2 if only
key and value are, nW: windows of a region per feature map, n: tokens per window, m: keys per
window, which is n, or n + 1 with the extra key that represents the padding.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .bias_cache import cached_position_biases, forget_position_biases
from .by_region import (
    Inputs,
    attend_by_region,
    attend_padded,
    attention_weights,
    fused,
    plain,
    split_regions,
)
from .cpu_attention import CPUAttention
from .graph_mode import fx_leaf, is_eager_on_cpu, is_recorded, is_transformed
from .windows import Region, Windows

SETTING = 'MMGCVIT_ATTENTION'
# Name of the backend for all calls. None selects the first backend that supports the inputs. The
# environment variable is read once, at import.
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
    """Return softmax(q kᵀ/√d + b) v for each window (paper, section 2.2 and equation 6).

    Args:
        qkv: Projected tokens, (B, L, k·C).
        windows: Window layout of the tokens, from :func:`.window_layout`.
        bias_table: Position bias of each offset, ((2w-1)², h).
        global_query: Queries shared by all windows of an image, (B, w², C); then k is 2. None for
            local attention; then k is 3.
        padding: Projection of a padded token, (1, k·C), from :func:`.project_padding`.
        dropout: Dropout rate of the attention weights.

    Returns:
        (B, L, C).

    Raises:
        ValueError: If the environment variable ``MMGCVIT_ATTENTION`` names an unknown backend, or
            one that does not support these inputs.
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
    """Return the attention weights softmax(q kᵀ/√d + b).

    The arguments are those of :func:`window_attention`.

    Returns:
        The weights of each region, (B, nW, h, n, m), with windows, queries and keys in row-major
        order. In regions with padding, the last key represents all padded tokens of a window.
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
    """An implementation of window attention.

    Attributes:
        attend: Computes the attention (B, L, C) of the inputs.
        serves: Whether the backend supports the inputs.
        when: Description of the supported inputs, for error messages.
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


def _attend_fused(inputs: Inputs) -> Tensor:
    attend = partial(attend_by_region, attend=fused)
    return attend_padded(inputs, attend) if inputs.qkv.is_cuda else attend(inputs)


def _attend_with_triton(inputs: Inputs) -> Tensor:
    try:
        from .triton_attention import attend
    except ImportError as error:
        raise ValueError(
            f'{SETTING}=triton needs Triton 3.0 or later, which torch installs on Linux since 2.4 '
            f'({error}): update torch, or leave {SETTING} unset'
        ) from error
    return attend(inputs)


def _fits_triton(inputs: Inputs) -> bool:
    qkv = inputs.qkv
    return (
        qkv.is_cuda
        and qkv.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and inputs.qkv_dims[-1] in (16, 32, 64)
        and inputs.dropout == 0
        and not (is_recorded() or is_transformed())
    )


# The first backend that supports the inputs is used. To add a kernel, add an entry before 'fused'.
# Backends after 'plain' are only used on request.
BACKENDS = {
    'cpu': Backend(
        _attend_on_cpu,
        lambda inputs: is_eager_on_cpu(inputs.qkv) and inputs.dropout == 0,
        'on a CPU without attn_drop_rate, outside of graph modes and torch.func',
    ),
    'fused': Backend(
        _attend_fused,
        lambda inputs: not is_transformed(),
        'outside of torch.func and forward-mode differentiation',
    ),
    'plain': Backend(
        lambda inputs: attend_by_region(inputs, plain), lambda inputs: True, 'everywhere'
    ),
    'triton': Backend(
        _attend_with_triton,
        _fits_triton,
        'on GPUs in bfloat16, float16 or float32, with 16, 32 or 64 channels per head and without '
        'attn_drop_rate, outside of graph modes and torch.func',
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
            f'{SETTING}={forced_backend} does not support these inputs: this backend works '
            f'{backend.when}; leave {SETTING} unset'
        )
    return backend
