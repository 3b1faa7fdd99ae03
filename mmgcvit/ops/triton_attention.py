"""Window attention on GPUs with kernels that read the position biases from their table.

PyTorch's fused attention reads a bias for each pair of a query and a key, writes a gradient of this
size per window, and sums the gradients afterwards. Here, the kernels look up the biases in the
table, and the gradient is summed over the windows in registers. There are no atomic operations, so
the results are deterministic.

The kernels read and write (B, L, k·C) without transposing it. Windows are padded, so all of them
have n tokens. If tiles do not divide n, the last tile repeats the last token: a repeated query is
not stored, and a repeated key has no weight.

B: batch size, L: tokens of a feature map in window order, C: channels, k: 3 if query, key and value
are projected from the tokens, 2 if only key and value are, w: window size, n = w²: tokens per
window, h: heads, d = C/h: channels per head.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .by_region import Inputs, attend_padded

# Tiles of queries and keys, number of warps and of pipeline stages, by bytes per element. Larger
# tiles do not fit into registers.
CONFIGS = {
    2: {'BLOCK_Q': 64, 'BLOCK_K': 64, 'num_warps': 4, 'num_stages': 3},
    4: {'BLOCK_Q': 32, 'BLOCK_K': 32, 'num_warps': 4, 'num_stages': 3},
}
# The bias kernel splits the windows into parts if there are fewer tiles than programs that a large
# GPU runs. The number is fixed, so that the order of summation is the same on all GPUs.
BIAS_PROGRAMS = 1024
# Each part writes a gradient to memory, so it should have at least this number of windows.
WINDOWS_PER_PART = 8

LOG2_E = tl.constexpr(1.4426950408889634)

if int(triton.__version__.split('.')[0]) < 3:
    raise ImportError(f'found Triton {triton.__version__}')


def attend(inputs: Inputs) -> Tensor:
    """Return the attention of all windows, (B, L, C).

    Args:
        inputs: Inputs of window attention on a GPU, without dropout. Tokens are bfloat16, float16
            or float32, and heads have 16, 32 or 64 channels.
    """
    return attend_padded(
        inputs, lambda x: TritonAttention.apply(x.qkv, x.bias_table, x.global_query)
    )


class TritonAttention(torch.autograd.Function):
    """Attention of complete windows.

    ``apply`` takes qkv (B, L, k·C), the bias table ((2w-1)², h) and the global query (B, n, C) or
    None, and returns (B, L, C).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias_table: Tensor, global_query: Tensor | None) -> Tensor:
        qkv = qkv.contiguous()
        if global_query is not None:
            global_query = global_query.contiguous()
        # the biases of a head are contiguous, so that neighboring offsets share cache lines
        table = bias_table.t().to(torch.float32).contiguous()
        query, key, value = _split(qkv, global_query)
        (B, L, C), h, w = key.shape, len(table), (math.isqrt(table.shape[1]) + 1) // 2
        n = w**2
        windows_per_query, q_stride = (1, qkv.shape[-1]) if global_query is None else (L // n, C)
        sizes = n, h, windows_per_query, q_stride, qkv.shape[-1]
        config = {'WINDOW': w, 'HEAD_DIM': C // h, 'PRECISION': _float32_precision()}
        config.update(CONFIGS[qkv.element_size()])
        out, lse = qkv.new_empty(B, L, C), table.new_empty(B * L // n * h, n)
        tiles = triton.cdiv(n, config['BLOCK_Q']) * len(lse)
        # Triton uses the current device, which may be another one
        with torch.cuda.device_of(qkv):
            _forward_kernel[(tiles,)](query, key, value, table, lse, out, *sizes, **config)
        ctx.sizes, ctx.config = sizes, config
        ctx.save_for_backward(qkv, table, global_query, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, table, global_query, out, lse = ctx.saved_tensors
        sizes, config, (n, h, *_) = ctx.sizes, ctx.config, ctx.sizes
        q_tiles, k_tiles = (triton.cdiv(n, config[name]) for name in ('BLOCK_Q', 'BLOCK_K'))
        grad_qkv, grad_table = torch.empty_like(qkv), None
        # each window writes its gradient of the global query
        grad_global = None if global_query is None else torch.empty_like(out)
        grad_query, grad_key, grad_value = _split(grad_qkv, grad_global)
        delta = torch.empty_like(lse)
        inputs = *_split(qkv, global_query), table, lse, delta, grad_out.contiguous()
        with torch.cuda.device_of(qkv):
            tiles = q_tiles * len(lse)
            _query_kernel[(tiles,)](*inputs, out, grad_query, *sizes, **config)
            tiles = k_tiles * len(lse)
            _key_value_kernel[(tiles,)](*inputs, grad_key, grad_value, *sizes, **config)
            if ctx.needs_input_grad[1]:
                num_windows, tiles = len(lse) // h, q_tiles * k_tiles * h
                num_parts = max(1, min(BIAS_PROGRAMS // tiles, num_windows // WINDOWS_PER_PART))
                grad_bias = lse.new_empty(num_parts, h, n, n)
                _bias_kernel[(tiles * num_parts,)](
                    *inputs, grad_bias, num_windows, num_parts, *sizes, **config
                )
                grad_bias = grad_bias.sum(0) if num_parts > 1 else grad_bias[0]
                # DistributedDataParallel expects the strides of the table
                grad_table = table.new_empty(table.shape[::-1])
                w = config['WINDOW']
                _table_kernel[(h * (2 * w - 1),)](
                    *(grad_bias, grad_table, h), WINDOW=w, BLOCK=triton.next_power_of_2(w)
                )
        if grad_global is not None:
            grad_global = grad_global.view(len(qkv), -1, n, out.shape[-1]).sum(1)
        # autograd casts the gradient of the table to its dtype
        return grad_qkv, grad_table, grad_global


def _split(qkv: Tensor, global_query: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value as views: (B, L, k·C) → (B, L, C) each, or the global query."""
    *query, key, value = qkv.chunk(3 if global_query is None else 2, -1)
    return *(query or [global_query]), key, value


def _float32_precision() -> str:
    """Return Triton's name for PyTorch's setting of the precision of float32 products."""
    matmul = torch.backends.cuda.matmul
    try:
        is_reduced = matmul.fp32_precision == 'tf32'
    except (AttributeError, AssertionError):  # torch < 2.9
        is_reduced = matmul.allow_tf32
    return 'tf32' if is_reduced else 'tf32x3'


@triton.jit
def _position(num_tiles, num_heads):
    """Return tile, head and window of a program. The tiles of a window are neighbors."""
    program = tl.program_id(0)
    return program % num_tiles, program // num_tiles % num_heads, program // num_tiles // num_heads


@triton.jit
def _pointers(x, window, head, tokens, stride, n, HEAD_DIM: tl.constexpr):
    """Return pointers to the channels of a head, (tokens, d)."""
    x += tl.cast(window, tl.int64) * (n * stride) + head * HEAD_DIM
    return x + tokens[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :]


@triton.jit
def _load(x, window, head, tokens, stride, n, HEAD_DIM: tl.constexpr):
    """Load the channels of a head, (tokens, d)."""
    tokens = tl.minimum(tokens, n - 1)
    return tl.load(_pointers(x, window, head, tokens, stride, n, HEAD_DIM))


@triton.jit
def _store(x, window, head, tokens, stride, tile, n, HEAD_DIM: tl.constexpr):
    """Store the channels of a head, (tokens, d), except those of repeated tokens."""
    pointers = _pointers(x, window, head, tokens, stride, n, HEAD_DIM)
    tl.store(pointers, tile.to(x.dtype.element_ty), mask=(tokens < n)[:, None])


@triton.jit
def _load_row(x, row, tokens, n):
    """Load one value per token, (tokens,)."""
    tokens = tl.minimum(tokens, n - 1)
    return tl.load(x + row.to(tl.int64) * n + tokens)


@triton.jit
def _store_row(x, row, tokens, values, n):
    """Store one value per token, (tokens,), except those of repeated tokens."""
    pointers = x + row.to(tl.int64) * n + tokens
    tl.store(pointers, values, mask=tokens < n)


@triton.jit
def _load_bias(table, head, queries, keys, WINDOW: tl.constexpr):
    """Load the biases between queries and keys, which are broadcast against each other.

    The bias of query (y, x) and key (v, u) is in row y-v+w-1 and column x-u+w-1 of the table.
    """
    queries = tl.minimum(queries, WINDOW * WINDOW - 1)
    keys = tl.minimum(keys, WINDOW * WINDOW - 1)
    size = 2 * WINDOW - 1
    of_query = (queries // WINDOW + WINDOW - 1) * size + queries % WINDOW + WINDOW - 1
    of_key = keys // WINDOW * size + keys % WINDOW
    return tl.load(table + head * (size * size) + (of_query - of_key))


@triton.jit
def _exponents(rows, columns, bias, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr):
    """Return the scores of rows (a, d) and columns (b, d) as powers of 2, (a, b)."""
    scores = tl.dot(rows, tl.trans(columns), input_precision=PRECISION)
    return (scores * HEAD_DIM**-0.5 + bias) * LOG2_E


@triton.jit(do_not_specialize=['n', 'num_heads', 'windows_per_query'])
def _forward_kernel(
    query, key, value, table, lse, out,
    n, num_heads, windows_per_query, q_stride, kv_stride,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per query tile, head and window."""
    tile, head, window = _position(tl.cdiv(n, BLOCK_Q), num_heads)
    queries = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = _load(query, window // windows_per_query, head, queries, q_stride, n, HEAD_DIM)
    highest = tl.full([BLOCK_Q], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    # n is no constant, since the loop would be unrolled, which takes more registers
    for start in range(0, n, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load(key, window, head, keys, kv_stride, n, HEAD_DIM)
        v = _load(value, window, head, keys, kv_stride, n, HEAD_DIM)
        bias = _load_bias(table, head, queries[:, None], keys[None, :], WINDOW)
        s = _exponents(q, k, bias, HEAD_DIM, PRECISION)
        if WINDOW * WINDOW % BLOCK_K != 0:
            s = tl.where(keys[None, :] < n, s, float('-inf'))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        decay = tl.exp2(highest - higher)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        highest = higher
    acc /= total[:, None]
    _store(out, window, head, queries, num_heads * HEAD_DIM, acc, n, HEAD_DIM)
    _store_row(lse, window * num_heads + head, queries, highest + tl.log2(total), n)


@triton.jit(do_not_specialize=['n', 'num_heads', 'windows_per_query'])
def _query_kernel(
    query, key, value, table, lse, delta, grad_out, out, grad_query,
    n, num_heads, windows_per_query, q_stride, kv_stride,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per query tile, head and window. Also computes delta = Σ out · grad_out."""
    tile, head, window = _position(tl.cdiv(n, BLOCK_Q), num_heads)
    queries = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row, stride = window * num_heads + head, num_heads * HEAD_DIM
    q = _load(query, window // windows_per_query, head, queries, q_stride, n, HEAD_DIM)
    do = _load(grad_out, window, head, queries, stride, n, HEAD_DIM)
    o = _load(out, window, head, queries, stride, n, HEAD_DIM)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    _store_row(delta, row, queries, row_delta, n)
    row_lse = _load_row(lse, row, queries, n)
    acc = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    for start in range(0, n, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k = _load(key, window, head, keys, kv_stride, n, HEAD_DIM)
        v = _load(value, window, head, keys, kv_stride, n, HEAD_DIM)
        bias = _load_bias(table, head, queries[:, None], keys[None, :], WINDOW)
        p = tl.exp2(_exponents(q, k, bias, HEAD_DIM, PRECISION) - row_lse[:, None])
        if WINDOW * WINDOW % BLOCK_K != 0:
            p = tl.where(keys[None, :] < n, p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - row_delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    acc *= HEAD_DIM**-0.5
    _store(grad_query, window, head, queries, q_stride, acc, n, HEAD_DIM)


@triton.jit(do_not_specialize=['n', 'num_heads', 'windows_per_query'])
def _key_value_kernel(
    query, key, value, table, lse, delta, grad_out, grad_key, grad_value,
    n, num_heads, windows_per_query, q_stride, kv_stride,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per key tile, head and window. Scores are transposed: keys are in rows."""
    tile, head, window = _position(tl.cdiv(n, BLOCK_K), num_heads)
    keys = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    row, stride = window * num_heads + head, num_heads * HEAD_DIM
    k = _load(key, window, head, keys, kv_stride, n, HEAD_DIM)
    v = _load(value, window, head, keys, kv_stride, n, HEAD_DIM)
    dk = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, HEAD_DIM], tl.float32)
    for start in range(0, n, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        q = _load(query, window // windows_per_query, head, queries, q_stride, n, HEAD_DIM)
        do = _load(grad_out, window, head, queries, stride, n, HEAD_DIM)
        row_lse = _load_row(lse, row, queries, n)
        row_delta = _load_row(delta, row, queries, n)
        bias = _load_bias(table, head, queries[None, :], keys[:, None], WINDOW)
        p = tl.exp2(_exponents(k, q, bias, HEAD_DIM, PRECISION) - row_lse[None, :])
        if WINDOW * WINDOW % BLOCK_Q != 0:
            p = tl.where(queries[None, :] < n, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - row_delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk *= HEAD_DIM**-0.5
    _store(grad_key, window, head, keys, kv_stride, dk, n, HEAD_DIM)
    _store(grad_value, window, head, keys, kv_stride, dv, n, HEAD_DIM)


@triton.jit(do_not_specialize=['num_windows', 'num_parts', 'n', 'num_heads', 'windows_per_query'])
def _bias_kernel(
    query, key, value, table, lse, delta, grad_out, grad_bias,
    num_windows, num_parts, n, num_heads, windows_per_query, q_stride, kv_stride,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per tile of the bias, head and part of the windows."""
    k_tiles = tl.cdiv(n, BLOCK_K)
    tile, head, part = _position(tl.cdiv(n, BLOCK_Q) * k_tiles, num_heads)
    queries = tile // k_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    keys = tile % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    bias = _load_bias(table, head, queries[:, None], keys[None, :], WINDOW)
    acc = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for window in range(part * num_windows // num_parts, (part + 1) * num_windows // num_parts):
        q = _load(query, window // windows_per_query, head, queries, q_stride, n, HEAD_DIM)
        k = _load(key, window, head, keys, kv_stride, n, HEAD_DIM)
        v = _load(value, window, head, keys, kv_stride, n, HEAD_DIM)
        do = _load(grad_out, window, head, queries, num_heads * HEAD_DIM, n, HEAD_DIM)
        row_lse = _load_row(lse, window * num_heads + head, queries, n)
        row_delta = _load_row(delta, window * num_heads + head, queries, n)
        p = tl.exp2(_exponents(q, k, bias, HEAD_DIM, PRECISION) - row_lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        acc += p * (dp - row_delta[:, None])
    pointers = grad_bias + (part * num_heads + head).to(tl.int64) * (n * n)
    pointers += queries[:, None] * n + keys[None, :]
    tl.store(pointers, acc, mask=(queries[:, None] < n) & (keys[None, :] < n))


@triton.jit(do_not_specialize=['num_heads'])
def _table_kernel(grad_bias, grad_table, num_heads, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """One program per head and row of the table. Sums the biases of each offset."""
    size = 2 * WINDOW - 1
    row, head, _ = _position(size, num_heads)
    row -= WINDOW - 1
    x = tl.arange(0, BLOCK)[:, None]
    columns = tl.arange(0, 2 * BLOCK) - (WINDOW - 1)
    u = x - columns[None, :]
    is_pair = (x < WINDOW) & (u >= 0) & (u < WINDOW)
    acc = tl.zeros([BLOCK, 2 * BLOCK], tl.float32)
    for y in range(tl.maximum(row, 0), tl.minimum(WINDOW, WINDOW + row)):
        query, key = y * WINDOW + x, (y - row) * WINDOW + u
        pointers = grad_bias + head * (WINDOW**4) + query * (WINDOW * WINDOW) + key
        acc += tl.load(pointers, mask=is_pair, other=0.0)
    offsets = (row + WINDOW - 1) * size + columns + WINDOW - 1
    tl.store(grad_table + offsets * num_heads + head, tl.sum(acc, 0), mask=columns < WINDOW)
