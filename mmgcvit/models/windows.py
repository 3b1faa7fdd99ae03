"""Maps in the order of their attention windows.

Windows of GC ViT do not shift: all blocks of a stage cut a map in the same way. So a stage puts its
map into the order of the windows once, and its blocks find each window's tokens in a row.

The published network pads maps whose sides the window does not divide, and computes with the
padding. Here no padded token is ever made, see :func:`.position_bias`.

B: batch size, H, W: sides of a map, C: channels, w: window side, n: tokens of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        regions: Those of each map, one to four, row by row.
        window_size: Side w.
    """

    def __init__(self, batch: int, regions: Sequence[Region], window_size: int) -> None:
        self.batch = batch
        self.regions = regions
        self.window_size = window_size

    @classmethod
    def of_maps(cls, batch: int, height: int, width: int, window_size: int) -> 'WindowLayout':
        """Return that of maps (B, H, W, C), none of their windows padded."""
        regions = [
            Region(top, left, rows, columns, region_height, region_width)
            for top, rows, region_height in _spans(height, window_size)
            for left, columns, region_width in _spans(width, window_size)
        ]
        return cls(batch, regions, window_size)

    @property
    def num_padded_tokens(self) -> int:
        """Tokens of all windows if those at the edges were padded to w × w."""
        return self.batch * sum(r.num_windows for r in self.regions) * self.window_size**2

    def pack(self, maps: Tensor) -> Tensor:
        """Order maps by windows: (B, H, W, C) → (B·H·W, C)."""
        C = maps.shape[-1]
        return join([self._cut(maps, region).reshape(-1, C) for region in self.regions])

    def unpack(self, tokens: Tensor) -> Tensor:
        """The inverse of :meth:`pack`: (B·H·W, C) → (B, H, W, C)."""
        C = tokens.shape[-1]
        rows: dict[int, list[Tensor]] = {}
        for r, part in zip(self.regions, self.split(tokens), strict=True):
            part = part.view(self.batch, r.rows, r.columns, r.height, r.width, C).transpose(2, 3)
            part = part.reshape(self.batch, r.rows * r.height, r.columns * r.width, C)
            rows.setdefault(r.top, []).append(part)
        return join([join(parts, 2) for parts in rows.values()], 1)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens of each region: (B·H·W, ...) → (B·nW·n, ...), nW its windows a map."""
        if len(self.regions) == 1:
            return [tokens]
        return list(tokens.split([self.batch * r.num_windows * r.num_tokens for r in self.regions]))

    def zero_padding(self, tokens: Tensor) -> Tensor:
        """Set the padding's tokens to zero; here there are none. (B·H·W, C) → (B·H·W, C)."""
        return tokens

    def spread(self, values: Tensor) -> Tensor:
        """Give each token the value of its map: (B,) → (B·H·W, 1)."""
        counts = [r.num_windows * r.num_tokens for r in self.regions]
        return torch.cat([values.repeat_interleave(count) for count in counts])[:, None]

    def _cut(self, maps: Tensor, r: Region) -> Tensor:
        """Return a region's windows: (B, H, W, C) → (B, rows, columns, height, width, C)."""
        part = maps[:, r.top :, r.left :][:, : r.rows * r.height, : r.columns * r.width]
        part = part.reshape(self.batch, r.rows, r.height, r.columns, r.width, maps.shape[-1])
        return part.transpose(2, 3)


class PaddedLayout(WindowLayout):
    """The order of whole windows in maps that are padded at the right and at the bottom.

    It costs more than the one without padding, but its operations are the same for maps of any
    sides: an exported graph has it. Between :meth:`pack` and :meth:`unpack` there are
    B·⌈H/w⌉·⌈W/w⌉·w² tokens, those of the padding among them with any values.

    Args:
        batch: B.
        height: H.
        width: W.
        window_size: Side w.
    """

    def __init__(self, batch: int, height: int, width: int, window_size: int) -> None:
        w = window_size
        self.height, self.width = height, width
        region = Region(0, 0, (height + w - 1) // w, (width + w - 1) // w, w, w)
        super().__init__(batch, [region], window_size)
        self._real: Tensor | None = None

    def pack(self, maps: Tensor) -> Tensor:
        """Order padded maps by windows: (B, H, W, C) → (tokens, C)."""
        (r,), w = self.regions, self.window_size
        padding = (0, 0, 0, r.columns * w - self.width, 0, r.rows * w - self.height)
        return super().pack(F.pad(maps, padding))

    def unpack(self, tokens: Tensor) -> Tensor:
        """The inverse of :meth:`pack`: (tokens, C) → (B, H, W, C)."""
        (r,), w = self.regions, self.window_size
        padding = (0, 0, 0, self.width - r.columns * w, 0, self.height - r.rows * w)
        return F.pad(super().unpack(tokens), padding)

    def zero_padding(self, tokens: Tensor) -> Tensor:
        """Set the padding's tokens to zero: (tokens, C) → (tokens, C)."""
        if self._real is None:
            self._real = self.pack(tokens.new_ones(self.batch, self.height, self.width, 1))
        return tokens * self._real


def join(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate tensors; one alone, as of a map that whole windows fill, is not copied."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _spans(side: int, window_size: int) -> list[tuple[int, int, int]]:
    """Return start, number and size of the windows along one side: whole ones, then the rest."""
    whole, rest = side // window_size, side % window_size
    spans = [(0, whole, window_size), (whole * window_size, 1, rest)]
    return [(start, count, size) for start, count, size in spans if count and size]
