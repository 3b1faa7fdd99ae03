"""Window attention, local and global (paper, section 3.2 and equations 2 to 4).

B: batch size, H, W: sides of a map, C: channels, h: heads, d = C/h: channels a head, w: window
side, N = w²: tokens a window, nW: windows an image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut maps into windows, after padding them with zeros at the right and the bottom.

    Args:
        x: (B, H, W, C).
        window_size: Side w.

    Returns:
        (B, nW, N, C), nW = ⌈H/w⌉·⌈W/w⌉.
    """
    B, H, W, C = x.shape
    w = window_size
    rows, columns = math.ceil(H / w), math.ceil(W / w)
    if (rows * w, columns * w) != (H, W):
        x = F.pad(x, (0, 0, 0, columns * w - W, 0, rows * w - H))
    x = x.view(B, rows, w, columns, w, C).transpose(2, 3)
    return x.reshape(B, rows * columns, w * w, C)


def merge_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Put the windows of :func:`partition_windows` together again, without the padding.

    Args:
        windows: (B, nW, N, C).
        height: H of the maps that were cut.
        width: W of the maps that were cut.

    Returns:
        (B, H, W, C).
    """
    B, _, N, C = windows.shape
    w = math.isqrt(N)
    rows, columns = math.ceil(height / w), math.ceil(width / w)
    x = windows.view(B, rows, columns, w, w, C).transpose(2, 3)
    return x.reshape(B, rows * w, columns * w, C)[:, :height, :width]


class WindowAttention(nn.Module):
    """What local and global attention share: windows, position bias, output projection.

    Args:
        dim: Channels C.
        num_heads: Heads h, a divisor of C.
        window_size: Side w.
        num_projections: How many of query, key and value are projected from the map itself.
        attn_drop_rate: Dropout of the attention weights.
        drop_rate: Dropout of the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        num_projections: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.attn_drop_rate = attn_drop_rate
        # called qkv in global attention too, where it gives k and v: so do all existing weights
        self.qkv = nn.Linear(dim, num_projections * dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self) -> Tensor:
        """Return (h, N, N): the bias of each query position (row) against each key position.

        Query (y, x) and key (v, u) share the table's entry at their offset, row y-v+w-1 and
        column x-u+w-1: so a query's biases are a w×w patch of the table, read backwards.
        """
        w = self.window_size
        table = self.relative_position_bias_table.t().unflatten(1, (2 * w - 1, 2 * w - 1))
        patches = table.unfold(1, w, 1).unfold(2, w, 1).flip(-2, -1)
        return patches.reshape(self.num_heads, w * w, w * w)

    def split_heads(self, x: Tensor) -> Tensor:
        """(..., N, k·C) → (k, ..., h, N, d), k query, key and value maps in that order."""
        k = x.shape[-1] // self.proj.in_features
        return x.unflatten(-1, (k, self.num_heads, -1)).movedim(-3, 0).transpose(-3, -2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Each (B, nW, h, N, d) → (B, nW, N, C)."""
        out = F.scaled_dot_product_attention(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            attn_mask=self.position_bias()[None].to(query.dtype),
            dropout_p=self.attn_drop_rate if self.training else 0.0,
        )
        return out.transpose(1, 2).flatten(2).unflatten(0, query.shape[:2])

    def project_output(self, windows: Tensor, height: int, width: int) -> Tensor:
        """(B, nW, N, C) → (B, H, W, C)."""
        return self.drop(self.proj(merge_windows(windows, height, width)))


class LocalAttention(WindowAttention):
    """Every token attends to the tokens of its own window."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, window_size, 3, attn_drop_rate, drop_rate)

    def forward(self, x: Tensor, global_query: Tensor | None = None) -> Tensor:
        """(B, H, W, C) → (B, H, W, C); ``global_query`` is not used."""
        windows = partition_windows(x, self.window_size)
        query, key, value = self.split_heads(self.qkv(windows))
        return self.project_output(self.attend(query, key, value), *x.shape[1:3])


class GlobalAttention(WindowAttention):
    """Every window of an image is asked the same queries, made from the whole map."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, window_size, 2, attn_drop_rate, drop_rate)

    def forward(self, x: Tensor, global_query: Tensor) -> Tensor:
        """(B, H, W, C), queries (B, N, C) → (B, H, W, C)."""
        windows = partition_windows(x, self.window_size)
        key, value = self.split_heads(self.qkv(windows))
        query = self.split_heads(global_query[:, None])[0].expand_as(key)
        return self.project_output(self.attend(query, key, value), *x.shape[1:3])
