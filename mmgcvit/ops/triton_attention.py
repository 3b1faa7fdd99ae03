"""Window attention on GPUs with kernels that read the position bias from its table.

PyTorch's fused attention reads a bias for each pair of a query and a key, writes a gradient of this
size per window, and sums the gradients afterwards. Here, the kernels look up the biases in the
table. Each program of one kernel computes a tile of the gradient: it loops over the windows and
writes the sum once. There are no atomic operations, so the results are deterministic. All kernels
access views of qkv and of its gradient in place.

The key that represents the padding is not appended to the keys. Instead, it is the initial state of
the online softmax: its score is the maximum, 1 the sum of exponentials, its value the output.

B: batch size, L: tokens of a feature map in window order, C: channels, w: window size, h: heads,
d = C/h: channels per head, nW: windows of a region per feature map, n: tokens per window.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .by_region import Inputs, heads_of, padding_by_head
from .position_bias import biases_of_padding
from .windows import Region, Windows

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

if int(triton.__version__.split('.')[0]) < 3:
    raise ImportError(f'found Triton {triton.__version__}')

LOG2_E = tl.constexpr(1.4426950408889634)


def attend(inputs: Inputs) -> Tensor:
    """Return the attention of all regions, (B, L, C).

    Args:
        inputs: Inputs of window attention on a GPU, without dropout. Tokens are bfloat16, float16
            or float32, and heads have 16, 32 or 64 channels.
    """
    # DistributedDataParallel expects the gradient to have the table's strides, as this view has it
    table = inputs.bias_table.flatten().view(inputs.bias_table.shape)
    windows = inputs.windows
    of_padding = biases_of_padding(table, windows, windows.regions)
    of_padding = [bias.to(torch.float32) for bias in of_padding]
    return TritonAttention.apply(*inputs._replace(bias_table=table)[:-1], *of_padding)


class TritonAttention(torch.autograd.Function):
    """Attention of all regions.

    ``apply`` takes the fields of :class:`.Inputs` except dropout, and the biases for the padding,
    (h, n) in float32, of each region with padding.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        windows: Windows,
        bias_table: Tensor,
        global_query: Tensor | None,
        padding: Tensor | None,
        *of_padding: Tensor,
    ) -> Tensor:
        qkv, global_query, padding = (
            None if x is None else x.contiguous() for x in (qkv, global_query, padding)
        )
        # the biases of a head are contiguous, so that neighboring offsets share cache lines
        table = bias_table.t().to(torch.float32).contiguous().t()
        tensors = qkv, table, global_query, padding
        inputs = Inputs(qkv, windows, *tensors[1:])
        _, h, d = inputs.qkv_dims
        out = qkv.new_empty(*qkv.shape[:2], h * d)
        # Triton uses the current device, which may be another one
        with torch.cuda.device_of(qkv):
            parts = _by_region(windows, of_padding, windows.split(qkv), windows.split(out))
            lses = [_forward(inputs, *part) for part in parts]
        ctx.windows = windows
        ctx.save_for_backward(*tensors, out, *lses, *of_padding)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        windows = ctx.windows
        qkv, table, global_query, padding, out, *saved = ctx.saved_tensors
        lses, of_padding = saved[: len(windows.regions)], saved[len(windows.regions) :]
        grads = Inputs(
            torch.empty_like(qkv),
            windows,
            *(
                None if x is None else torch.zeros_like(x, dtype=torch.float32)
                for x in (table, global_query, padding)
            ),
        )
        split = (windows.split(x) for x in (qkv, out, grad_out.contiguous(), grads.qkv))
        inputs = Inputs(qkv, windows, table, global_query, padding)
        grad_of_padding = [
            _backward(inputs, grads, *part)
            for part in _by_region(windows, of_padding, lses, *split)
        ]
        # autograd casts the float32 sums to the dtypes of the inputs
        return (
            grads.qkv,
            None,
            *(grads.bias_table, grads.global_query, grads.padding),
            *(grad for grad in grad_of_padding if grad is not None),
        )


def _by_region(
    windows: Windows, of_padding: Sequence[Tensor], *parts: Sequence[Tensor]
) -> Iterator[tuple]:
    """Return regions, their biases for the padding (None without padding), and their parts."""
    biases = iter(of_padding)
    each = [next(biases) if windows.is_partial(region) else None for region in windows.regions]
    return zip(windows.regions, each, *parts, strict=True)


def _forward(
    inputs: Inputs, region: Region, of_padding: Tensor | None, part: Tensor, out: Tensor
) -> Tensor:
    """Write the attention of a region to ``out``, (B, nW·n, C).

    Returns:
        Logarithms to base 2 of the sums of exponentials, (B·nW, h, n) in float32.
    """
    query, key, value = heads_of(part, region, inputs)
    out = _by_head(out, region, inputs)
    B, nW, h, n, _ = query.shape
    config = _config('forward', inputs, region)
    lse = out.new_empty(B * nW, h, n, dtype=torch.float32)
    _forward_kernel[(triton.cdiv(n, config['BLOCK_Q']) * len(lse) * h,)](
        *(query, key, value, inputs.bias_table),
        *(of_padding, *_padding(inputs, region), out, lse),
        *(*_strides(query, key, out), *_sizes(inputs, region)),
        HAS_PADDING=of_padding is not None,
        **config,
    )
    return lse


def _backward(
    inputs: Inputs,
    grads: Inputs,
    region: Region,
    of_padding: Tensor | None,
    lse: Tensor,
    part: Tensor,
    out: Tensor,
    grad_out: Tensor,
    grad_part: Tensor,
) -> Tensor | None:
    """Write the gradient of a region's tokens and add to those of inputs that regions share.

    Returns:
        The gradient of ``of_padding``.
    """
    query, key, value = heads_of(part, region, inputs)
    grad_query, grad_key, grad_value = heads_of(grad_part, region, grads)
    out, grad_out = (_by_head(x, region, inputs) for x in (out, grad_out))
    B, nW, h, n, d = query.shape
    if inputs.global_query is not None:
        grad_query = query.new_empty(B, nW, n, h, d).transpose(2, 3)
    strides, sizes = _strides(query, key, out), _sizes(inputs, region)

    config = _config('query', inputs, region)
    tiles = triton.cdiv(n, config['BLOCK_Q'])
    delta, grad_of_padding, grad_padding = torch.empty_like(lse), None, None
    if of_padding is not None:
        grad_of_padding = torch.empty_like(lse)
        grad_padding = lse.new_empty(B * nW, h, tiles, 2, d)
    _query_kernel[(tiles * len(lse) * h,)](
        *(query, key, value, inputs.bias_table),
        *(of_padding, *_padding(inputs, region), out, grad_out, lse),
        *(delta, grad_query, grad_of_padding, grad_padding),
        *(*strides, *_strides(grad_query), *sizes),
        HAS_PADDING=of_padding is not None,
        **config,
    )
    config = _config('key_value', inputs, region)
    _key_value_kernel[(triton.cdiv(n, config['BLOCK_K']) * len(lse) * h,)](
        *(query, key, value, inputs.bias_table, grad_out, lse, delta, grad_key, grad_value),
        *(*strides, *sizes),
        **config,
    )
    config = _config('bias', inputs, region)
    programs = triton.cdiv(n, config['BLOCK_Q']) * triton.cdiv(n, config['BLOCK_K']) * h
    num_parts = max(1, min(BIAS_PROGRAMS // programs, len(lse) // WINDOWS_PER_PART))
    grad_bias = lse.new_empty(num_parts, h, n, n)
    _bias_kernel[(programs * num_parts,)](
        *(query, key, value, inputs.bias_table, grad_out, lse, delta, grad_bias),
        *(*strides, len(lse), num_parts, *sizes),
        **config,
    )
    grad_bias = grad_bias.sum(0) if num_parts > 1 else grad_bias[0]
    _table_kernel[(h * (2 * region.height - 1),)](
        *(grad_bias, grads.bias_table, region.height, region.width, inputs.windows.window_size),
        WIDTH=triton.next_power_of_2(region.width),
        num_warps=4,
    )
    if inputs.global_query is not None:
        w, size = inputs.windows.window_size, (region.height, region.width)
        into = grads.global_query.unflatten(1, (w, w))[:, : size[0], : size[1]]
        grad = grad_query.sum(1, dtype=torch.float32)
        into += grad.transpose(1, 2).flatten(2).unflatten(1, size)
    if of_padding is None:
        return None
    grad = grad_padding.sum((0, 2)).unbind(1)
    for into, x in zip(padding_by_head(grads), grad, strict=True):
        into += x
    return grad_of_padding.sum(0)


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
        'PRECISION': _float32_precision(),
    }


def _float32_precision() -> str:
    """Return Triton's name for PyTorch's setting of the precision of float32 products."""
    matmul = torch.backends.cuda.matmul
    try:
        is_reduced = matmul.fp32_precision == 'tf32'
    except (AttributeError, AssertionError):  # torch < 2.9
        is_reduced = matmul.allow_tf32
    return 'tf32' if is_reduced else 'tf32x3'


def _by_head(x: Tensor, region: Region, inputs: Inputs) -> Tensor:
    """Return a view: (B, nW·n, C) → (B, nW, h, n, d)."""
    x = x.unflatten(1, (region.num_windows, region.num_tokens))
    return x.unflatten(-1, inputs.qkv_dims[1:]).transpose(2, 3)


def _padding(inputs: Inputs, region: Region) -> tuple[Tensor | None, Tensor | None]:
    """Return key and value of the padding, (1, h, d) each, if the region has padding."""
    return padding_by_head(inputs) if inputs.windows.is_partial(region) else (None, None)


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of image, window and token of tensors (B, nW, h, n, d)."""
    return [x.stride(dim) for x in tensors for dim in (0, 1, 3)]


def _sizes(inputs: Inputs, region: Region) -> tuple[int | float, ...]:
    """Return the common last arguments of the kernels, up to the scale of the scores."""
    _, h, d = inputs.qkv_dims
    w = inputs.windows.window_size
    return w, region.width, region.num_windows, h, region.num_tokens, d**-0.5


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
def _load_row(base, tokens, n, FITS: tl.constexpr):
    """Load one value per token, (tokens,). Those of tokens beyond n are zero."""
    return tl.load(base + tokens) if FITS else tl.load(base + tokens, mask=tokens < n, other=0.0)


@triton.jit
def _load_bias(table, queries, keys, window_size, width, n, FITS: tl.constexpr):
    """Load the biases between queries and keys, which are broadcast against each other.

    The bias of query (y, x) and key (v, u) is in row y-v+w-1 and column x-u+w-1 of the table.
    """
    size = 2 * window_size - 1
    of_query = (queries // width + window_size - 1) * size + queries % width + window_size - 1
    of_key = keys // width * size + keys % width
    pointers = table + (of_query - of_key)
    if FITS:
        bias = tl.load(pointers)
    else:
        bias = tl.load(pointers, mask=(queries < n) & (keys < n), other=0.0)
    return bias


@triton.jit
def _window(base, window, image_stride, window_stride, num_windows):
    """Return the pointer to a window, of all windows of all images."""
    image = (window // num_windows).to(tl.int64)
    return base + image * image_stride + (window % num_windows).to(tl.int64) * window_stride


@triton.jit(do_not_specialize=['window_size', 'width', 'num_windows'])
def _forward_kernel(
    query, key, value, table, of_padding, padding_key, padding_value, out, lse,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    window_size, width, num_windows, num_heads, n, scale,
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
    table += head * (2 * window_size - 1) * (2 * window_size - 1)

    q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
    if HAS_PADDING:
        kp = tl.load(padding_key + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        vp = tl.load(padding_value + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        highest = tl.sum(q.to(tl.float32) * kp[None, :], 1) * scale
        highest += _load_row(of_padding + head * n, queries, n, Q_FITS)
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
        b = _load_bias(
            table, queries[:, None], keys[None, :], window_size, width, n, Q_FITS and K_FITS
        )
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


@triton.jit(do_not_specialize=['window_size', 'width', 'num_windows'])
def _query_kernel(
    query, key, value, table, of_padding, padding_key, padding_value, out, grad_out, lse,
    delta, grad_query, grad_of_padding, grad_padding,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    dq_image, dq_window, dq_token,
    window_size, width, num_windows, num_heads, n, scale,
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
    table += head * (2 * window_size - 1) * (2 * window_size - 1)
    rows = (window * num_heads + head).to(tl.int64) * n

    q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
    do = _load_tile(grad_out, queries, o_token, n, HEAD_DIM, Q_FITS)
    o = _load_tile(out, queries, o_token, n, HEAD_DIM, Q_FITS)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + rows + queries, row_delta, mask=queries < n)
    row_lse = _load_row(lse + rows, queries, n, Q_FITS)
    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    if HAS_PADDING:
        kp = tl.load(padding_key + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        vp = tl.load(padding_value + channels + tl.arange(0, HEAD_DIM)).to(tl.float32)
        sp = tl.sum(q.to(tl.float32) * kp[None, :], 1) * scale
        sp += _load_row(of_padding + head * n, queries, n, Q_FITS)
        pp = tl.exp2(sp * LOG2_E - row_lse)
        dsp = pp * (tl.sum(do.to(tl.float32) * vp[None, :], 1) - row_delta)
        tl.store(grad_of_padding + rows + queries, dsp, mask=queries < n)
        acc += dsp[:, None] * kp[None, :]
        into = grad_padding + program.to(tl.int64) * (2 * HEAD_DIM) + tl.arange(0, HEAD_DIM)
        tl.store(into, tl.sum(dsp[:, None] * q.to(tl.float32), 0) * scale)
        tl.store(into + HEAD_DIM, tl.sum(pp[:, None] * do.to(tl.float32), 0))
    for start in range(0, n, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load_tile(key, keys, kv_token, n, HEAD_DIM, K_FITS)
        v = _load_tile(value, keys, kv_token, n, HEAD_DIM, K_FITS)
        b = _load_bias(
            table, queries[:, None], keys[None, :], window_size, width, n, Q_FITS and K_FITS
        )
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + b
        if not K_FITS:
            s = tl.where(keys[None, :] < n, s, float('-inf'))
        p = tl.exp2(s * LOG2_E - row_lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - row_delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    grad_query = _window(grad_query, window, dq_image, dq_window, num_windows) + channels
    _store_tile(grad_query, queries, dq_token, n, acc * scale, HEAD_DIM, Q_FITS)


@triton.jit(do_not_specialize=['window_size', 'width', 'num_windows'])
def _key_value_kernel(
    query, key, value, table, grad_out, lse, delta, grad_key, grad_value,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    window_size, width, num_windows, num_heads, n, scale,
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
    table += head * (2 * window_size - 1) * (2 * window_size - 1)
    rows = (window * num_heads + head).to(tl.int64) * n

    k = _load_tile(key, keys, kv_token, n, HEAD_DIM, K_FITS)
    v = _load_tile(value, keys, kv_token, n, HEAD_DIM, K_FITS)
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    for start in range(0, n, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        q = _load_tile(query, queries, q_token, n, HEAD_DIM, Q_FITS)
        do = _load_tile(grad_out, queries, o_token, n, HEAD_DIM, Q_FITS)
        row_lse = _load_row(lse + rows, queries, n, Q_FITS)
        row_delta = _load_row(delta + rows, queries, n, Q_FITS)
        b = _load_bias(
            table, queries[None, :], keys[:, None], window_size, width, n, Q_FITS and K_FITS
        )
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


@triton.jit(do_not_specialize=['all_windows', 'num_parts', 'window_size', 'width', 'num_windows'])
def _bias_kernel(
    query, key, value, table, grad_out, lse, delta, grad_bias,
    q_image, q_window, q_token, kv_image, kv_window, kv_token, o_image, o_window, o_token,
    all_windows, num_parts, window_size, width, num_windows, num_heads, n, scale,
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
    table += head * (2 * window_size - 1) * (2 * window_size - 1)
    b = _load_bias(table, queries[:, None], keys[None, :], window_size, width, n, Q_FITS and K_FITS)
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
        row_lse = _load_row(lse + rows, queries, n, Q_FITS)
        row_delta = _load_row(delta + rows, queries, n, Q_FITS)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale + b
        p = tl.exp2(s * LOG2_E - row_lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        acc += p * (dp - row_delta[:, None])
    into = grad_bias + program.to(tl.int64) * n * n + queries[:, None] * n + keys[None, :]
    if Q_FITS and K_FITS:
        tl.store(into, acc)
    else:
        tl.store(into, acc, mask=(queries[:, None] < n) & (keys[None, :] < n))


@triton.jit(do_not_specialize=['height', 'width', 'window_size'])
def _table_kernel(grad_bias, grad_table, height, width, window_size, WIDTH: tl.constexpr):
    """One program per head and difference of rows. Adds to the gradient of the table."""
    program, size = tl.program_id(0), 2 * window_size - 1
    head = program // (2 * height - 1)
    row = program % (2 * height - 1) - (height - 1)
    x = tl.arange(0, WIDTH)[:, None]
    column = tl.arange(0, 2 * WIDTH)[None, :] - (width - 1)
    u = x - column
    n = height * width
    is_key = (x < width) & (u >= 0) & (u < width)
    acc = tl.zeros([WIDTH, 2 * WIDTH], tl.float32)
    for y in range(tl.maximum(row, 0), tl.minimum(height, height + row)):
        query, key = y * width + x, (y - row) * width + u
        acc += tl.load(grad_bias + (head * n + query) * n + key, mask=is_key, other=0.0)
    columns = tl.arange(0, 2 * WIDTH) - (width - 1)
    into = grad_table + (head * size + row + window_size - 1) * size + columns + window_size - 1
    is_offset = columns < width
    total = tl.load(into, mask=is_offset, other=0.0) + tl.sum(acc, 0)
    tl.store(into, total, mask=is_offset)
