"""Window attention on GPUs with kernels that sum the gradient of the position bias over windows.

PyTorch's fused attention writes a bias gradient per window and sums them afterwards. Here, each
program of one kernel computes a tile of the gradient: it loops over the windows and writes the sum
once. There are no atomic operations, so the results are deterministic. All kernels access views of
qkv and of its gradient in place.

The key that represents the padding is not appended to the keys. Instead, it is the initial state of
the online softmax: its score is the maximum, 1 the sum of exponentials, its value the output.

B: batch size, L: tokens of a feature map in window order, C: channels, h: heads, d = C/h: channels
per head, nW: windows of a region per feature map, n: tokens per window.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .by_region import Inputs, heads_of, padding_by_head
from .position_bias import position_biases
from .windows import Region

# Tiles of queries and keys, number of warps and of pipeline stages of each kernel.
CONFIGS = {
    'forward': {'BLOCK_Q': 64, 'BLOCK_K': 64, 'num_warps': 4, 'num_stages': 3},
    'query': {'BLOCK_Q': 64, 'BLOCK_K': 64, 'num_warps': 4, 'num_stages': 3},
    'key_value': {'BLOCK_Q': 64, 'BLOCK_K': 64, 'num_warps': 4, 'num_stages': 3},
    'bias': {'BLOCK_Q': 64, 'BLOCK_K': 64, 'num_warps': 4, 'num_stages': 3},
}
# The bias kernel splits the windows into parts if there are fewer tiles than programs that a large
# GPU runs. The number is fixed, so that the order of summation is the same on all GPUs.
BIAS_PROGRAMS = 1024
# Each part writes a gradient to memory, so it should have at least this number of windows.
WINDOWS_PER_PART = 8

LOG2_E = tl.constexpr(1.4426950408889634)


def attend(inputs: Inputs) -> Tensor:
    """Return the attention of all regions, (B, L, C).

    Args:
        inputs: Inputs of window attention on a GPU, without dropout. Tokens are bfloat16, float16
            or float32, and heads have 16, 32 or 64 channels.
    """
    table = inputs.bias_table
    # Biases in the dtype of the table, so that their gradients are not rounded to half precision.
    biases = position_biases(table, inputs.windows, table.dtype, is_kept=True)
    return TritonAttention.apply(*inputs._replace(bias_table=table.detach())[:-1], *biases)


class TritonAttention(torch.autograd.Function):
    """Attention of all regions. ``apply`` takes the fields of :class:`.Inputs` except dropout, and
    the results of :func:`.position_biases`, which receive the gradient instead of the table.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        windows: Any,
        bias_table: Tensor,
        global_query: Tensor | None,
        padding: Tensor | None,
        *biases: Tensor,
    ) -> Tensor:
        qkv, global_query, padding = (
            None if x is None else x.contiguous() for x in (qkv, global_query, padding)
        )
        inputs = Inputs(qkv, windows, bias_table, global_query, padding)
        biases = [_cast(bias, qkv.dtype) for bias in biases]
        _, h, d = inputs.qkv_dims
        out = qkv.new_empty(*qkv.shape[:2], h * d)
        # Triton uses the current device, which may be another one
        with torch.cuda.device_of(qkv):
            lses = [
                _forward(inputs, *parts)
                for parts in zip(
                    windows.regions, biases, windows.split(qkv), windows.split(out), strict=True
                )
            ]
        ctx.windows = windows
        ctx.save_for_backward(qkv, bias_table, global_query, padding, out, *biases, *lses)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        windows = ctx.windows
        qkv, bias_table, global_query, padding, out, *saved = ctx.saved_tensors
        inputs = Inputs(qkv, windows, bias_table, global_query, padding)
        grads = Inputs(
            torch.empty_like(qkv),
            windows,
            bias_table,
            *(
                None if x is None else torch.zeros_like(x, dtype=torch.float32)
                for x in (global_query, padding)
            ),
        )
        grad_out = grad_out.contiguous()
        split = (windows.split(x) for x in (qkv, out, grad_out, grads.qkv))
        biases, lses = saved[: len(windows.regions)], saved[len(windows.regions) :]
        grad_biases = [
            _backward(inputs, grads, *parts)
            for parts in zip(windows.regions, biases, lses, *split, strict=True)
        ]
        # autograd casts the float32 sums to the dtypes of the inputs
        return grads.qkv, None, None, grads.global_query, grads.padding, *grad_biases


def _forward(inputs: Inputs, region: Region, bias: Tensor, part: Tensor, out: Tensor) -> Tensor:
    """Write the attention of a region to ``out``, (B, nW·n, C).

    Returns:
        Logarithms to base 2 of the sums of exponentials, (B·nW, h, n).
    """
    query, key, value = heads_of(part, region, inputs)
    out = _by_head(out, region, inputs)
    B, nW, h, n, d = query.shape
    config = _config('forward', inputs, region)
    lse = bias.new_empty(B * nW, h, n, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(n, config['BLOCK_Q']) * len(lse) * h,)](
        *(query, key, value, bias, *_padding(inputs, region), out, lse),
        *_strides(query, key, out, bias),
        *(nW, h, n, d**-0.5),
        **config,
    )
    return lse


def _backward(
    inputs: Inputs,
    grads: Inputs,
    region: Region,
    bias: Tensor,
    lse: Tensor,
    part: Tensor,
    out: Tensor,
    grad_out: Tensor,
    grad_part: Tensor,
) -> Tensor:
    """Write the gradient of a region's tokens and add to those of global query and padding.

    Returns:
        The gradient of the bias, (h, n, m) in float32.
    """
    query, key, value = heads_of(part, region, inputs)
    grad_query, grad_key, grad_value = heads_of(grad_part, region, grads)
    out, grad_out = (_by_head(x, region, inputs) for x in (out, grad_out))
    B, nW, h, n, d = query.shape
    if inputs.global_query is not None:
        grad_query = query.new_empty(B, nW, n, h, d).transpose(2, 3)
    sizes = nW, h, n, d**-0.5
    strides = _strides(query, key, out, bias)

    config = _config('query', inputs, region)
    tiles = triton.cdiv(n, config['BLOCK_Q'])
    delta, padding_scores, grad_padding = torch.empty_like(lse), None, None
    if config['HAS_PADDING']:
        padding_scores = torch.empty_like(lse)
        grad_padding = lse.new_empty(B * nW, h, tiles, 2, d)
    _query_kernel[(tiles * len(lse) * h,)](
        *(query, key, value, bias, *_padding(inputs, region), out, grad_out, lse),
        *(delta, grad_query, padding_scores, grad_padding),
        *(*strides, *_strides(grad_query), *sizes),
        **config,
    )
    config = _config('key_value', inputs, region)
    del config['HAS_PADDING']
    _key_value_kernel[(triton.cdiv(n, config['BLOCK_K']) * len(lse) * h,)](
        *(query, key, value, bias, grad_out, lse, delta, grad_key, grad_value),
        *(*strides, *sizes),
        **config,
    )
    config = _config('bias', inputs, region)
    del config['HAS_PADDING']
    programs = triton.cdiv(n, config['BLOCK_Q']) * triton.cdiv(n, config['BLOCK_K']) * h
    num_parts = max(1, min(BIAS_PROGRAMS // programs, len(lse) // WINDOWS_PER_PART))
    grad_biases = torch.empty_strided(
        (num_parts, *bias.shape),
        (bias.shape[0] * bias.stride(0), *bias.stride()),
        dtype=torch.float32,
        device=bias.device,
    )
    _bias_kernel[(programs * num_parts,)](
        *(query, key, value, bias, grad_out, lse, delta, grad_biases),
        *(*strides, grad_biases.stride(0), len(lse), num_parts, *sizes),
        **config,
    )
    grad_bias = grad_biases.sum(0) if num_parts > 1 else grad_biases[0]

    if padding_scores is not None:
        grad_bias[..., n] = padding_scores.sum(0)
        grad = grad_padding.sum((0, 2)).unbind(1)
        for into, x in zip(padding_by_head(grads), grad, strict=True):
            into += x
    if inputs.global_query is not None:
        w, size = inputs.windows.window_size, (region.height, region.width)
        into = grads.global_query.unflatten(1, (w, w))[:, : size[0], : size[1]]
        grad = grad_query.sum(1, dtype=torch.float32)
        into += grad.transpose(1, 2).flatten(2).unflatten(1, size)
    return grad_bias


def _config(name: str, inputs: Inputs, region: Region) -> dict[str, Any]:
    """Return the compile-time arguments of a kernel."""
    config = dict(CONFIGS[name])
    limit = max(16, triton.next_power_of_2(region.num_tokens))
    if inputs.qkv.dtype == torch.float32:
        # larger tiles do not fit into registers
        limit = min(limit, 32)
    for block in ('BLOCK_Q', 'BLOCK_K'):
        config[block] = min(config[block], limit)
    return {
        **config,
        'Q_FITS': region.num_tokens % config['BLOCK_Q'] == 0,
        'K_FITS': region.num_tokens % config['BLOCK_K'] == 0,
        'HEAD_DIM': inputs.qkv_dims[-1],
        'HAS_PADDING': inputs.windows.is_partial(region),
        'PRECISION': _float32_precision(),
    }


def _float32_precision() -> str:
    """Return Triton's name for PyTorch's setting of the precision of float32 products."""
    matmul = torch.backends.cuda.matmul
    # PyTorch refuses to read one of its two settings if the other one has been used
    precision = getattr(matmul, 'fp32_precision', 'none')
    is_reduced = precision == 'tf32' if precision != 'none' else matmul.allow_tf32
    return 'tf32' if is_reduced else 'tf32x3'


def _by_head(x: Tensor, region: Region, inputs: Inputs) -> Tensor:
    """Return a view: (B, nW·n, C) → (B, nW, h, n, d)."""
    x = x.unflatten(1, (region.num_windows, region.num_tokens))
    return x.unflatten(-1, inputs.qkv_dims[1:]).transpose(2, 3)


def _padding(inputs: Inputs, region: Region) -> tuple[Tensor | None, Tensor | None]:
    """Return key and value of the padding, (1, h, d) each, if the region has padding."""
    return padding_by_head(inputs) if inputs.windows.is_partial(region) else (None, None)


def _cast(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast without changing the strides, since aligned rows are faster to read."""
    empty = torch.empty_strided(bias.shape, bias.stride(), dtype=dtype, device=bias.device)
    return empty.copy_(bias)


def _strides(*tensors: Tensor) -> list[int]:
    """Return strides: image, window and token of (B, nW, h, n, d), head and query of (h, n, m)."""
    return [x.stride(dim) for x in tensors for dim in ((0, 1, 3) if x.dim() == 5 else (0, 1))]


@triton.jit
def _load_tile(base, tokens, stride, n, HEAD_DIM: tl.constexpr, FITS: tl.constexpr):
    """Load the channels of tokens, (tokens, d). Tokens beyond n are zero."""
    pointers = base + tokens[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]
    tile = tl.load(pointers) if FITS else tl.load(pointers, mask=tokens[:, None] < n, other=0.0)
    return tile


@triton.jit
def _store_tile(base, tokens, stride, n, tile, HEAD_DIM: tl.constexpr, FITS: tl.constexpr):
    """Store the channels of tokens, (tokens, d), except those of tokens beyond n."""
    pointers = base + tokens[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]
    tile = tile.to(base.dtype.element_ty)
    if FITS:
        tl.store(pointers, tile)
    else:
        tl.store(pointers, tile, mask=tokens[:, None] < n)


@triton.jit
def _load_row(base, tokens, n, FITS: tl.constexpr, OTHER: tl.constexpr):
    """Load one value per token, (tokens,). Those of tokens beyond n are OTHER."""
    row = tl.load(base + tokens) if FITS else tl.load(base + tokens, mask=tokens < n, other=OTHER)
    return row


@triton.jit
def _load_bias(base, queries, keys, stride, n, FITS: tl.constexpr):
    """Load the bias between queries and keys, which are broadcast against each other."""
    pointers = base + queries * stride + keys
    if FITS:
        bias = tl.load(pointers)
    else:
        bias = tl.load(pointers, mask=(queries < n) & (keys < n), other=0.0)
    return bias.to(tl.float32)


@triton.jit
def _window(base, window, image_stride, window_stride, num_windows):
    """Return the pointer to a window, of all windows of all images."""
    image = (window // num_windows).to(tl.int64)
    return base + image * image_stride + (window % num_windows).to(tl.int64) * window_stride


@triton.jit(do_not_specialize=['num_windows'])
def _forward_kernel(
    query, key, value, bias, padding_key, padding_value, out, lse,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    bias_head, bias_query,
    num_windows, num_heads, n, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, Q_FITS: tl.constexpr, K_FITS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HAS_PADDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per query tile, head and window; tiles of a window are neighbors."""
    program, tiles = tl.program_id(0), tl.cdiv(n, BLOCK_Q)
    head, window = program // tiles % num_heads, program // tiles // num_heads
    queries = program % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = head * HEAD_DIM
    query = _window(query, window, q_image, q_window, num_windows) + channels
    key = _window(key, window, kv_image, kv_window, num_windows) + channels
    value = _window(value, window, kv_image, kv_window, num_windows) + channels
    bias += head * bias_head

    q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
    if HAS_PADDING:
        kp = tl.load(padding_key + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        vp = tl.load(padding_value + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        highest = tl.sum(q.to(tl.float32) * kp[None, :], 1) * scale
        highest += tl.load(bias + queries * bias_query + n, mask=queries < n, other=0.0)
        total = tl.full([BLOCK_Q], 1.0, tl.float32)
        acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32) + vp[None, :]
    else:
        highest = tl.full([BLOCK_Q], float('-inf'), tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    for start in range(0, n, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load_tile(key, keys, kv_token, n, HEAD_DIM, K_FITS)
        v = _load_tile(value, keys, kv_token, n, HEAD_DIM, K_FITS)
        b = _load_bias(bias, queries[:, None], keys[None, :], bias_query, n, Q_FITS and K_FITS)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + b
        if not K_FITS:
            s = tl.where(keys[None, :] < n, s, float('-inf'))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s * LOG2_E - (higher * LOG2_E)[:, None])
        decay = tl.exp2((highest - higher) * LOG2_E)
        total = total * decay + tl.sum(p, 1)
        acc = acc * decay[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        highest = higher
    out = _window(out, window, o_image, o_window, num_windows) + channels
    _store_tile(out, queries, o_token, n, acc / total[:, None], HEAD_DIM, Q_FITS)
    rows = (window * num_heads + head).to(tl.int64) * n
    tl.store(lse + rows + queries, highest * LOG2_E + tl.log2(total), mask=queries < n)


@triton.jit(do_not_specialize=['num_windows'])
def _query_kernel(
    query, key, value, bias, padding_key, padding_value, out, grad_out, lse,
    delta, grad_query, grad_padding_scores, grad_padding,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    bias_head, bias_query, dq_image, dq_window, dq_token,
    num_windows, num_heads, n, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, Q_FITS: tl.constexpr, K_FITS: tl.constexpr,
    HEAD_DIM: tl.constexpr, HAS_PADDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per query tile, head and window; tiles of a window are neighbors."""
    program, tiles = tl.program_id(0), tl.cdiv(n, BLOCK_Q)
    head, window = program // tiles % num_heads, program // tiles // num_heads
    queries = program % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = head * HEAD_DIM
    query = _window(query, window, q_image, q_window, num_windows) + channels
    key = _window(key, window, kv_image, kv_window, num_windows) + channels
    value = _window(value, window, kv_image, kv_window, num_windows) + channels
    out = _window(out, window, o_image, o_window, num_windows) + channels
    grad_out = _window(grad_out, window, o_image, o_window, num_windows) + channels
    bias += head * bias_head
    rows = (window * num_heads + head).to(tl.int64) * n

    q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
    do = _load_tile(grad_out, queries, o_token, n, HEAD_DIM, Q_FITS)
    o = _load_tile(out, queries, o_token, n, HEAD_DIM, Q_FITS)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + rows + queries, row_delta, mask=queries < n)
    # rows beyond n get no weight
    row_lse = _load_row(lse + rows, queries, n, Q_FITS, float('inf'))
    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    if HAS_PADDING:
        kp = tl.load(padding_key + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        vp = tl.load(padding_value + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        sp = tl.sum(q.to(tl.float32) * kp[None, :], 1) * scale
        sp += tl.load(bias + queries * bias_query + n, mask=queries < n, other=0.0)
        pp = tl.exp2(sp * LOG2_E - row_lse)
        dsp = pp * (tl.sum(do.to(tl.float32) * vp[None, :], 1) - row_delta)
        tl.store(grad_padding_scores + rows + queries, dsp, mask=queries < n)
        acc += dsp[:, None] * kp[None, :]
        into = grad_padding + program.to(tl.int64) * (2 * HEAD_DIM) + tl.arange(0, HEAD_DIM)
        tl.store(into, tl.sum(dsp[:, None] * q.to(tl.float32), 0) * scale)
        tl.store(into + HEAD_DIM, tl.sum(pp[:, None] * do.to(tl.float32), 0))
    for start in range(0, n, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load_tile(key, keys, kv_token, n, HEAD_DIM, K_FITS)
        v = _load_tile(value, keys, kv_token, n, HEAD_DIM, K_FITS)
        b = _load_bias(bias, queries[:, None], keys[None, :], bias_query, n, Q_FITS and K_FITS)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + b
        if not K_FITS:
            s = tl.where(keys[None, :] < n, s, float('-inf'))
        p = tl.exp2(s * LOG2_E - row_lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - row_delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    grad_query = _window(grad_query, window, dq_image, dq_window, num_windows) + channels
    _store_tile(grad_query, queries, dq_token, n, acc * scale, HEAD_DIM, Q_FITS)


@triton.jit(do_not_specialize=['num_windows'])
def _key_value_kernel(
    query, key, value, bias, grad_out, lse, delta, grad_key, grad_value,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    bias_head, bias_query,
    num_windows, num_heads, n, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, Q_FITS: tl.constexpr, K_FITS: tl.constexpr,
    HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per key tile, head and window. Scores are transposed: keys are in rows."""
    program, tiles = tl.program_id(0), tl.cdiv(n, BLOCK_K)
    head, window = program // tiles % num_heads, program // tiles // num_heads
    keys = program % tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    channels = head * HEAD_DIM
    query = _window(query, window, q_image, q_window, num_windows) + channels
    key = _window(key, window, kv_image, kv_window, num_windows) + channels
    value = _window(value, window, kv_image, kv_window, num_windows) + channels
    grad_out = _window(grad_out, window, o_image, o_window, num_windows) + channels
    bias += head * bias_head
    rows = (window * num_heads + head).to(tl.int64) * n

    k = _load_tile(key, keys, kv_token, n, HEAD_DIM, K_FITS)
    v = _load_tile(value, keys, kv_token, n, HEAD_DIM, K_FITS)
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    for start in range(0, n, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
        do = _load_tile(grad_out, queries, o_token, n, HEAD_DIM, Q_FITS)
        # queries beyond n get no weight
        row_lse = _load_row(lse + rows, queries, n, Q_FITS, float('inf'))
        row_delta = _load_row(delta + rows, queries, n, Q_FITS, 0.0)
        b = _load_bias(bias, queries[None, :], keys[:, None], bias_query, n, Q_FITS and K_FITS)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale + b
        p = tl.exp2(s * LOG2_E - row_lse[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - row_delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    grad_key = _window(grad_key, window, kv_image, kv_window, num_windows) + channels
    grad_value = _window(grad_value, window, kv_image, kv_window, num_windows) + channels
    _store_tile(grad_key, keys, kv_token, n, dk * scale, HEAD_DIM, K_FITS)
    _store_tile(grad_value, keys, kv_token, n, dv, HEAD_DIM, K_FITS)


@triton.jit(do_not_specialize=['num_windows', 'all_windows', 'num_parts'])
def _bias_kernel(
    query, key, value, bias, grad_out, lse, delta, grad_bias,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    bias_head, bias_query, bias_part,
    all_windows, num_parts, num_windows, num_heads, n, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, Q_FITS: tl.constexpr, K_FITS: tl.constexpr,
    HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per tile of the bias, head and part of the windows."""
    program, q_tiles, k_tiles = tl.program_id(0), tl.cdiv(n, BLOCK_Q), tl.cdiv(n, BLOCK_K)
    keys = program % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    queries = program // k_tiles % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    program = program // k_tiles // q_tiles
    head, part = program % num_heads, program // num_heads
    offset = head * HEAD_DIM
    pointers = head * bias_head
    b = _load_bias(
        bias + pointers, queries[:, None], keys[None, :], bias_query, n, Q_FITS and K_FITS
    )
    acc = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for window in range(part * all_windows // num_parts, (part + 1) * all_windows // num_parts):
        q = _load_tile(
            _window(query, window, q_image, q_window, num_windows) + offset,
            queries, q_token, n, HEAD_DIM, Q_FITS,
        )  # fmt: skip
        k = _load_tile(
            _window(key, window, kv_image, kv_window, num_windows) + offset,
            keys, kv_token, n, HEAD_DIM, K_FITS,
        )  # fmt: skip
        v = _load_tile(
            _window(value, window, kv_image, kv_window, num_windows) + offset,
            keys, kv_token, n, HEAD_DIM, K_FITS,
        )  # fmt: skip
        do = _load_tile(
            _window(grad_out, window, o_image, o_window, num_windows) + offset,
            queries, o_token, n, HEAD_DIM, Q_FITS,
        )  # fmt: skip
        rows = (window * num_heads + head).to(tl.int64) * n
        row_lse = _load_row(lse + rows, queries, n, Q_FITS, float('inf'))
        row_delta = _load_row(delta + rows, queries, n, Q_FITS, 0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + b
        p = tl.exp2(s * LOG2_E - row_lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        acc += p * (dp - row_delta[:, None])
    into = grad_bias + part.to(tl.int64) * bias_part + pointers
    into = into + queries[:, None] * bias_query + keys[None, :]
    if Q_FITS and K_FITS:
        tl.store(into, acc)
    else:
        tl.store(into, acc, mask=(queries[:, None] < n) & (keys[None, :] < n))
