"""Partition of feature maps into attention windows, and the inverse.

Windows of GC ViT do not shift: all blocks of a stage partition a feature map in the same way. So a
stage partitions once, and its blocks find the tokens of each window in a row.

The published network pads a feature map at the right and at the bottom until the window size
divides its height and width, and computes with the padding. Here :class:`Windows` pads nothing:
windows at these edges are smaller, and attention accounts for the missing tokens
(:mod:`.position_bias`). :class:`PaddedWindows`, for graphs that serve feature maps of any size,
pads as published.

B: batch size, H, W: height and width of a feature map, C: channels, w: window size, n: tokens of a
window, nW: windows of a region in one feature map, L: tokens of one feature map.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .graph_mode import fx_leaf, is_compiling, serves_other_sizes


@fx_leaf
def window_layout(x: Tensor, window_size: int) -> 'Windows':
    """Return how feature maps (B, H, W, C) are partitioned into windows of window_size²."""
    _, height, width, _ = x.shape
    if serves_other_sizes(height, width):
        return PaddedWindows(height, width, window_size)
    return Windows(height, width, window_size)


def project_padding(projection: nn.Module, x: Tensor, windows: 'Windows') -> Tensor | None:
    """Return what a padded token, which is zero, is projected to.

    Args:
        projection: What projects tokens.
        x: (B, L, C), the tokens.
        windows: Their order.

    Returns:
        (1, C'); None where nothing is padded, and (0, C') there in a graph of torch.fx.
    """
    zeros = windows.padding(x)
    # A graph cannot branch. Otherwise, hooks on the projection never see an empty tensor.
    return projection(zeros) if isinstance(zeros, Proxy) or zeros.shape[0] else None


@dataclass(frozen=True)
class Region:
    """A part of a feature map with windows of one size: inner, right edge, bottom edge or corner.

    Attributes:
        top: Its first row in the feature map.
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
        """nW."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """n."""
        return self.height * self.width


class Windows:
    """Windows of a feature map in the order of their tokens: region by region, row by row.

    Args:
        height: H.
        width: W.
        window_size: w.

    Attributes:
        regions (tuple[Region, ...]): One to four.
    """

    def __init__(self, height: int, width: int, window_size: int) -> None:
        self.height, self.width, self.window_size = height, width, window_size
        self.regions = self._regions()
        self._constants: dict[Hashable, Tensor] = {}

    @property
    def num_padded_tokens(self) -> int:
        """Tokens of one feature map if all its windows were padded to w × w."""
        return sum(region.num_windows for region in self.regions) * self.window_size**2

    def constant(self, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what depends on the windows alone, computed once for all blocks of a stage."""
        if is_compiling():
            # torch.compile allows no side effects in a checkpointed block
            return compute()
        if name not in self._constants:
            # a tensor of inference mode cannot be used in training
            with torch.inference_mode(False):
                self._constants[name] = compute()
        return self._constants[name]

    def is_partial(self, region: Region) -> bool:
        """Whether the windows of a region are smaller than w × w, to which others would pad."""
        return region.num_tokens < self.window_size**2

    def partition(self, x: Tensor) -> Tensor:
        """Put the tokens of each window in a row: (B, H, W, C) → (B, L, C)."""
        return join([self._cut(x, region).flatten(1, -2) for region in self.regions], 1)

    def merge(self, tokens: Tensor) -> Tensor:
        """Return feature maps, the inverse of :meth:`partition`: (B, L, C) → (B, H, W, C)."""
        rows: dict[int, list[Tensor]] = {}
        for r, part in zip(self.regions, self.split(tokens), strict=True):
            part = part.unflatten(1, (r.rows, r.columns, r.height, r.width)).transpose(2, 3)
            rows.setdefault(r.top, []).append(part.flatten(3, 4).flatten(1, 2))
        return join([join(parts, 2) for parts in rows.values()], 1)

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        """Return the tokens of each region: (B, L, ...) → (B, nW·n, ...)."""
        if len(self.regions) == 1:
            return [tokens]
        return tokens.split([region.num_windows * region.num_tokens for region in self.regions], 1)

    def padding(self, tokens: Tensor) -> Tensor:
        """Return one padded token, which is zero: (B, L, C) → (1, C), or (0, C) without padding."""
        return tokens.new_zeros(int(any(map(self.is_partial, self.regions))), tokens.shape[-1])

    def fill_padding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Give padded tokens a value; here there are none: (B, L, C), (1, C) → (B, L, C)."""
        return tokens

    def _regions(self) -> tuple[Region, ...]:
        return tuple(
            Region(top, left, rows, columns, height, width)
            for top, rows, height in _spans(self.height, self.window_size)
            for left, columns, width in _spans(self.width, self.window_size)
        )

    def _cut(self, x: Tensor, r: Region) -> Tensor:
        """Return the windows of a region: (B, H, W, C) → (B, rows, columns, height, width, C)."""
        part = x[:, r.top :, r.left :][:, : r.rows * r.height, : r.columns * r.width]
        part = part.unflatten(2, (r.columns, r.width)).unflatten(1, (r.rows, r.height))
        return part.transpose(2, 3)


class PaddedWindows(Windows):
    """Windows of a feature map that is padded at the right and at the bottom, as published.

    It costs more than smaller windows, but its operations are the same for feature maps of any
    size. Between :meth:`partition` and :meth:`merge` there are L = ⌈H/w⌉·⌈W/w⌉·w² tokens;
    padded ones have arbitrary values.
    """

    def partition(self, x: Tensor) -> Tensor:
        """Put the tokens of each padded window in a row: (B, H, W, C) → (B, L, C)."""
        right, below = self._padding()
        return super().partition(F.pad(x, (0, 0, 0, right, 0, below)))

    def merge(self, tokens: Tensor) -> Tensor:
        """Return feature maps without the padding: (B, L, C) → (B, H, W, C)."""
        right, below = self._padding()
        return F.pad(super().merge(tokens), (0, 0, 0, -right, 0, -below))

    def padding(self, tokens: Tensor) -> Tensor:
        """Return one padded token, which is zero: (B, L, C) → (1, C)."""
        return tokens.new_zeros(1, tokens.shape[-1])

    def fill_padding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Give padded tokens a value: (B, L, C) and (1, C) → (B, L, C)."""
        size = 1, self.height, self.width, 1
        is_token = self.constant(
            'is_token',
            lambda: self.partition(torch.ones(size, dtype=torch.uint8, device=tokens.device)) > 0,
        )
        return torch.where(is_token, tokens, padding)

    def _regions(self) -> tuple[Region, ...]:
        w = self.window_size
        return (Region(0, 0, (self.height + w - 1) // w, (self.width + w - 1) // w, w, w),)

    def _padding(self) -> tuple[int, int]:
        (r,), w = self.regions, self.window_size
        return r.columns * w - self.width, r.rows * w - self.height


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors; a single one is not copied."""
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def _spans(size: int, window_size: int) -> list[tuple[int, int, int]]:
    """Return start, number and size of the windows in one dimension: full ones, then the rest."""
    full, rest = size // window_size, size % window_size
    spans = [(0, full, window_size), (full * window_size, 1, rest)]
    return [(start, count, length) for start, count, length in spans if count and length]
