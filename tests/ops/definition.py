"""Window attention by definition: windows are padded and all attention weights are computed.

Only the window order comes from the package. Dimension letters are those of
mmgcvit/ops/by_region.py.
"""

import torch

HEADS, HEAD_DIM = 2, 3


def random_inputs(windows, batch, is_global, dtype=torch.float64):
    """Return arguments for ``window_attention``, in which all tensors require gradients."""
    w, C = windows.window_size, HEADS * HEAD_DIM
    kinds = 2 if is_global else 3

    def randn(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

    return [
        randn(batch, windows.height * windows.width, kinds * C),
        windows,
        randn((2 * w - 1) ** 2, HEADS),
        randn(batch, w * w, C) if is_global else None,
        randn(1, kinds * C),
    ]


def tensors_of(inputs):
    return [x for x in inputs if isinstance(x, torch.Tensor)]


def attention(qkv, windows, table, global_query, padding):
    """Return (B, L, C) like ``window_attention``."""
    return attention_and_weights(qkv, windows, table, global_query, padding)[0]


def attention_and_weights(qkv, windows, table, global_query, padding):
    """Return the output (B, L, C) and the attention weights (B, ⌈H/w⌉, ⌈W/w⌉, h, w², w²)."""
    w, H, W = windows.window_size, windows.height, windows.width
    B, rows, columns = len(qkv), -(-H // w), -(-W // w)
    maps = padding.expand(B, rows * w, columns * w, -1).clone()
    maps[:, :H, :W] = windows.merge(qkv)
    maps = (
        maps.view(B, rows, w, columns, w, -1).transpose(2, 3).reshape(B, rows, columns, w * w, -1)
    )
    *query, key, value = (by_head(x) for x in maps.chunk(2 if global_query is not None else 3, -1))
    query = query[0] if query else by_head(global_query)[:, None, None]
    bias = position_bias(table, w)
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    out = (weights @ value).transpose(3, 4).reshape(B, rows, columns, w, w, -1)
    out = out.transpose(2, 3).reshape(B, rows * w, columns * w, -1)[:, :H, :W]
    return windows.partition(out), weights


def by_head(x, heads=HEADS):
    """(..., n, C) → (..., h, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def position_bias(table, window):
    """Return the biases between queries and keys of a full window, (h, w², w²)."""
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(window)] * 2, indexing='ij'))
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return table[rows * (2 * window - 1) + columns].permute(2, 0, 1)
