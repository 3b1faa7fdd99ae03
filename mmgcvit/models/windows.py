"""Maps in the order of their attention windows.

Windows of GC ViT do not shift: all blocks of a stage cut a map in the same way. So a stage puts its
map into the order of the windows once, and its blocks find each window's tokens in a row.

The published network pads maps whose sides the window does not divide, and computes with the
padding. Here no padded token is ever made, see :meth:`.attention.WindowAttention.position_bias`.

B: batch size, H, W: sides of a map, C: channels, w: window side, n: tokens of a window.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A part of a map in which windows have one size: inner, right edge, bottom edge or corner.

    Attributes:
        top: Its first row in the map.
        left: Its first column.
        rows: Windows below each other.
        columns: Windows beside each other.
        height: Rows of each window, w unless at the bottom.
        width: Columns of each window, w unless at the right.
    """

    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int

    @property
    def num_windows(self) -> int:
        """Windows of one map."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Tokens n of one window."""
        return self.height * self.width


class WindowLayout:
    """The order of the windows in a batch of maps: region by region, map by map.

    Args:
        batch: B.
        height: H.
        width: W.
        window_size: Side w.

    Attributes:
        regions: One to four of them.
    """

    def __init__(self, batch: int, height: int, width: int, window_size: int) -> None:
        self.batch = batch
        self.height = height
        self.width = width
        self.window_size = window_size
        self.regions = [
            Region(top, left, rows, columns, region_height, region_width)
            for top, rows, region_height in _spans(height, window_size)
            for left, columns, region_width in _spans(width, window_size)
        ]

    @property
    def num_padded_tokens(self) -> int:
        """Tokens of all windows if those at the edges were padded to w × w."""
        w = self.window_size
        return self.batch * math.ceil(self.height / w) * math.ceil(self.width / w) * w * w

    def pack(self, maps: Tensor) -> Tensor:
        """Order maps by windows: (B, H, W, C) → (B·H·W, C)."""
        C = maps.shape[-1]
        return join([self._cut(maps, region).reshape(-1, C) for region in self.regions])

    def unpack(self, tokens: Tensor) -> Tensor:
        """The inverse of :meth:`pack`: (B·H·W, C) → (B, H, W, C)."""
        C = tokens.shape[-1]
        parts = [
            part.view(self.batch, r.rows, r.columns, r.height, r.width, C)
            .transpose(2, 3)
            .reshape(self.batch, r.rows * r.height, r.columns * r.width, C)
            for r, part in zip(self.regions, self.split(tokens), strict=True)
        ]
        beside = len(_spans(self.width, self.window_size))
        rows = [join(parts[i : i + beside], 2) for i in range(0, len(parts), beside)]
        return join(rows, 1)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens of each region: (B·H·W, ...) → (B·nW·n, ...), nW its windows a map."""
        return list(tokens.split([self.batch * r.num_windows * r.num_tokens for r in self.regions]))

    def spread(self, values: Tensor) -> Tensor:
        """Give each token the value of its map: (B,) → (B·H·W, 1)."""
        counts = [r.num_windows * r.num_tokens for r in self.regions]
        return torch.cat([values.repeat_interleave(count) for count in counts])[:, None]

    def _cut(self, maps: Tensor, r: Region) -> Tensor:
        """Return a region's windows: (B, H, W, C) → (B, rows, columns, height, width, C)."""
        part = maps[:, r.top :, r.left :][:, : r.rows * r.height, : r.columns * r.width]
        part = part.reshape(len(maps), r.rows, r.height, r.columns, r.width, maps.shape[-1])
        return part.transpose(2, 3)


def join(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; one alone, as of a map that whole windows fill, is not copied."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _spans(side: int, window_size: int) -> list[tuple[int, int, int]]:
    """Return start, number and size of the windows along one side: whole ones, then the rest."""
    whole, rest = side // window_size, side % window_size
    spans = [(0, whole, window_size), (whole * window_size, 1, rest)]
    return [(start, count, size) for start, count, size in spans if count and size]
