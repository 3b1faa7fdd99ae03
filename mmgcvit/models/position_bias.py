"""Relative position biases of a window's queries and keys (paper, equation 4).

w: window side, h: heads, n: real tokens of a window, m: its keys, n or, with the one that stands
for the padding, n + 1.
"""

import torch
from torch import Tensor

from .graphs import is_recorded


def position_bias(table: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Return the bias of each query (row) against each key, in a window of real tokens.

    Query (y, x) and key (v, u) share the table's entry at their offset, row y-v+w-1 and column
    x-u+w-1.

    Where the window is padded, one key more stands for all padded ones together: they have the
    same key and value, so that their weights add up to that of a key whose bias is the logarithm
    of the sum of the exponentials of theirs.

    Args:
        table: ((2w-1)², h), a bias for each offset.
        window_size: Side w.
        height: Real rows of the window, w if it is not padded.
        width: Real columns.

    Returns:
        (h, n, m), n = height · width.
    """
    patches = _patches(table, window_size, height, width)
    n = height * width
    real = patches[..., :height, :width].reshape(-1, n, n)
    if n == window_size**2:
        return real
    right, below = patches[..., width:].flatten(-2), patches[..., height:, :width].flatten(-2)
    padding = torch.cat([right, below], -1)
    padding = padding.to(torch.promote_types(padding.dtype, torch.float32)).logsumexp(-1).flatten(1)
    return torch.cat([real, padding[..., None].to(real.dtype)], -1)


def position_bias_backward(
    grad: Tensor, bias: Tensor, table: Tensor, window_size: int, height: int, width: int
) -> Tensor:
    """Return the table's gradient; on a CPU in a fraction of autograd's time.

    Args:
        grad: (h, n, m), the gradient of ``bias``, float32 or float64; all is computed in its type.
        bias: (h, n, m), what :func:`position_bias` returned for the other arguments.
        table: ((2w-1)², h).
        window_size: Side w.
        height: Real rows of the window.
        width: Real columns.

    Returns:
        ((2w-1)², h).
    """
    w, n = window_size, height * width
    table, bias = table.to(grad.dtype), bias.to(grad.dtype)
    if n == w * w:
        patches = grad.view(-1, w, w, w, w)
    else:
        by_query = (-1, height, width, 1, 1)
        patches = _patches(table, w, height, width) - bias[:, :, n].reshape(by_query)
        patches.exp_().mul_(grad[:, :, n].reshape(by_query))
        patches[..., :height, :width] = grad[:, :, :n].view(-1, height, width, height, width)
    # of the table read backwards: patch (y, x) begins in its row w-1-y and column w-1-x
    rows = patches.new_zeros(len(patches), 2 * w - 1, width, w)
    for y in range(height):
        rows[:, w - 1 - y : 2 * w - 1 - y] += patches[:, y].transpose(1, 2)
    backwards = patches.new_zeros(len(patches), 2 * w - 1, 2 * w - 1)
    for x in range(width):
        backwards[:, :, w - 1 - x : 2 * w - 1 - x] += rows[:, :, x]
    return backwards.flatten(1).t().flip(0)


def _patches(table: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Return for each real query its biases against the w×w window: (h, height, width, w, w)."""
    w = window_size
    # A query's biases are a patch of the table, read backwards. With the table backwards they are
    # read forwards, and only the order of the queries is to be reversed.
    table = table.flip(0).t().unflatten(1, (2 * w - 1, 2 * w - 1))
    columns = _reversed(table.unfold(2, w, 1)[:, :, w - width :], 2).transpose(1, 2).contiguous()
    rows = columns.unfold(2, w, 1)[:, :, w - height :].permute(0, 2, 1, 4, 3)
    return _reversed(rows, 1)


def _reversed(x: Tensor, dim: int) -> Tensor:
    if is_recorded():
        return x.flip(dim)
    # Tensor.flip leaves memory in the order of the overlapping patches: slow to write and to read
    return torch.stack(x.unbind(dim)[::-1], dim)


class BiasCache:
    """Position biases that were computed from a table, until it changes.

    Noticed are a change in place, other memory and another table. A change of the memory through
    ``.data`` leaves no trace, so whoever owns the cache clears it in ``train()`` and ``eval()``:
    mmengine's EMAHook makes such a change before a validation calls ``eval()``.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Keep nothing."""
        self._kept: tuple[Tensor | None, tuple, dict[tuple, Tensor]] = (None, (), {})

    def get(
        self, table: Tensor, window_size: int, height: int, width: int, dtype: torch.dtype
    ) -> Tensor:
        """Return :func:`position_bias` of these arguments, in a type."""
        state = (table._version, table.data_ptr())
        # in one piece: another thread may clear or replace it
        kept_table, kept_state, biases = self._kept
        if kept_table is not table or kept_state != state:
            biases = {}
            self._kept = (table, state, biases)
        # a tensor of inference mode cannot be kept for a backward pass
        key = (height, width, dtype, torch.is_inference_mode_enabled())
        bias = biases.get(key)
        if bias is None:
            bias = position_bias(table, window_size, height, width).to(dtype)
            biases[key] = bias
        return bias

    def __len__(self) -> int:
        return len(self._kept[2])

    def __reduce__(self) -> tuple:
        # copies and files are made without
        return BiasCache, ()
