"""Partition of feature maps into attention windows, and the inverse.

GC ViT does not shift its windows, so all blocks of a stage use the same partition. Therefore each
stage partitions its feature map once, and its blocks find the tokens of a window contiguously.

The published network pads a feature map on the right and bottom until the window size divides its
height and width, and computes with the padded tokens. :class:`Windows` avoids padding: windows at
these edges are smaller, and attention accounts for the missing tokens (:mod:`.position_bias`).
:class:`PaddedWindows` does pad, for graphs that accept feature maps of any size.

B: batch size, H, W: height and width of a feature map, C: channels, w: window size, n: tokens per
window, nW: windows of a region per feature map, L: tokens per feature map.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from .graph_mode import fx_leaf, is_compiling, serves_other_sizes


@fx_leaf
def window_layout(x: Tensor, window_size: int) -> 'Windows':
    """Return the window layout of feature maps (B, H, W, C)."""
    _, height, width, _ = x.shape
    if serves_other_sizes(height, width):
        return PaddedWindows(height, width, window_size)
    return Windows(height, width, window_size)


def project_padding(projection: nn.Module, x: Tensor, windows: 'Windows') -> Tensor | None:
    """Return the projection of a padded token, which is zero before the projection.

    Args:
        projection: Projection of the tokens.
        x: Tokens, (B, L, C).
        windows: Window layout of the tokens.

    Returns:
        (1, C'). Without padding: None, or (0, C') in a torch.fx graph.
    """
    zeros = windows.padding(x)
    # Hooks on the projection must not get an empty tensor, except in a torch.fx graph, which
    # cannot branch.
    return projection(zeros) if isinstance(zeros, Proxy) or zeros.shape[0] else None


@dataclass(frozen=True)
class Region:
    """A part of a feature map with windows of one size: inner, right edge, bottom edge or corner.

    Attributes:
        top: First row of the region in the feature map.
        left: First column of the region in the feature map.
        rows: Number of rows of windows.
        columns: Number of columns of windows.
        height: Height of each window in tokens. It is w except at the bottom edge.
        width: Width of each window in tokens. It is w except at the right edge.
    """

    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int

    @property
    def num_windows(self) -> int:
        """Number of windows nW."""
        return self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """Number of tokens n per window."""
        return self.height * self.width


class Windows:
    """Window layout of a feature map: region by region, and in row-major order inside each region.

    Args:
        height: Height H of the feature map.
        width: Width W of the feature map.
        window_size: Window size w.

    Attributes:
        regions (tuple[Region, ...]): One to four regions.
    """

    def __init__(self, height: int, width: int, window_size: int) -> None:
        self.height, self.width, self.window_size = height, width, window_size
        self.regions = self._regions()
        self._constants: dict[Hashable, Tensor] = {}

    @property
    def num_padded_tokens(self) -> int:
        """Number of tokens per feature map if all windows were padded to w × w."""
        return sum(region.num_windows for region in self.regions) * self.window_size**2

    def constant(self, name: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return a tensor that depends only on the windows, cached for all blocks of a stage."""
        if is_compiling():
            # torch.compile does not allow side effects in a checkpointed block
            return compute()
        if name not in self._constants:
            # tensors created in inference mode cannot be used in training
            with torch.inference_mode(False):
                self._constants[name] = compute()
        return self._constants[name]

    def is_partial(self, region: Region) -> bool:
        """Whether the windows of a region are smaller than w × w, so padding would be needed."""
        return region.num_tokens < self.window_size**2

    def partition(self, x: Tensor) -> Tensor:
        """Reorder tokens from row-major to window order: (B, H, W, C) → (B, L, C)."""
        rows = {r.top: r.rows * r.height for r in self.regions}
        columns = {r.left: r.columns * r.width for r in self.regions}
        parts = (
            part
            for row in split(x, list(rows.values()), 1)
            for part in split(row, list(columns.values()), 2)
        )
        windows = [
            part.unflatten(2, (r.columns, r.width)).unflatten(1, (r.rows, r.height))
            for part, r in zip(parts, self.regions, strict=True)
        ]
        return join([part.transpose(2, 3).flatten(1, -2) for part in windows], 1)

    def merge(self, tokens: Tensor) -> Tensor:
        """Invert :meth:`partition`: (B, L, C) → (B, H, W, C)."""
        rows: dict[int, list[Tensor]] = {}
        for r, part in zip(self.regions, self.split(tokens), strict=True):
            part = part.unflatten(1, (r.rows, r.columns, r.height, r.width)).transpose(2, 3)
            rows.setdefault(r.top, []).append(part.flatten(3, 4).flatten(1, 2))
        return join([join(parts, 2) for parts in rows.values()], 1)

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        """Return the tokens of each region: (B, L, ...) → (B, nW·n, ...)."""
        return split(tokens, [region.num_windows * region.num_tokens for region in self.regions], 1)

    @property
    def has_padding(self) -> bool:
        """Whether any windows are smaller than w × w."""
        return any(map(self.is_partial, self.regions))

    def pad(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Pad each window to w × w tokens: (B, L, C), (1, C) → (B, nW·w², C)."""
        padded = padding.expand(len(tokens), self.num_padded_tokens, -1)
        return padded.index_copy(1, self._positions(tokens.device), tokens)

    def crop(self, tokens: Tensor) -> Tensor:
        """Remove the padding of :meth:`pad`: (B, nW·w², C) → (B, L, C)."""
        return _Select.apply(tokens, self._positions(tokens.device))

    def padding(self, tokens: Tensor) -> Tensor:
        """Return a padded token, which is zero: (1, C), or (0, C) if there is no padding."""
        return tokens.new_zeros(int(self.has_padding), tokens.shape[-1])

    def fill_padding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Set the values of padded tokens, of which there are none: (B, L, C) → (B, L, C)."""
        return tokens

    def _positions(self, device: torch.device) -> Tensor:
        """Return the position of each token among the tokens of padded windows, (L,)."""

        def compute() -> Tensor:
            w, n = self.window_size, self.num_padded_tokens
            parts = torch.arange(n, device=device).split(
                [r.num_windows * w**2 for r in self.regions]
            )
            return join(
                [
                    part.view(-1, w, w)[:, : r.height, : r.width].flatten()
                    for part, r in zip(parts, self.regions, strict=True)
                ],
                0,
            )

        return self.constant(('positions', device), compute)

    def _regions(self) -> tuple[Region, ...]:
        return tuple(
            Region(top, left, rows, columns, height, width)
            for top, rows, height in _spans(self.height, self.window_size)
            for left, columns, width in _spans(self.width, self.window_size)
        )


class _Select(torch.autograd.Function):
    """Select different tokens of each image: (B, N, C), (L,) → (B, L, C).

    PyTorch's ``index_select`` adds gradients, because an index may occur twice. On a GPU, this
    takes atomic operations. Here, gradients are copied.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = tokens.shape
        return tokens.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(1, index, grad), None


class PaddedWindows(Windows):
    """Window layout of a feature map that is padded on the right and bottom.

    This costs more than smaller windows, but the operations are the same for feature maps of any
    size. Attention gives the same results as in the published network. But that network crops the
    padding after each attention, while here, norms and MLPs also process padded tokens: there are
    L = ⌈H/w⌉·⌈W/w⌉·w² tokens between :meth:`partition` and :meth:`merge`. The values of padded
    tokens are arbitrary.
    """

    def partition(self, x: Tensor) -> Tensor:
        """Pad, and reorder tokens from row-major to window order: (B, H, W, C) → (B, L, C)."""
        right, below = self._padding()
        return super().partition(F.pad(x, (0, 0, 0, right, 0, below)))

    def merge(self, tokens: Tensor) -> Tensor:
        """Invert :meth:`partition` and remove the padding: (B, L, C) → (B, H, W, C)."""
        right, below = self._padding()
        return F.pad(super().merge(tokens), (0, 0, 0, -right, 0, -below))

    def padding(self, tokens: Tensor) -> Tensor:
        """Return a padded token, which is zero: (1, C)."""
        return tokens.new_zeros(1, tokens.shape[-1])

    def fill_padding(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """Set padded tokens to ``padding``: (B, L, C), (1, C) → (B, L, C)."""
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


def split(x: Tensor, sizes: Sequence[int], dim: int) -> Sequence[Tensor]:
    """Split a tensor. With a single size, the tensor is returned without a copy of its gradient."""
    return x.split(list(sizes), dim) if len(sizes) > 1 else [x]


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors. A single tensor is returned without a copy."""
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def _spans(size: int, window_size: int) -> list[tuple[int, int, int]]:
    """Return (start, number, size) of the full windows in one dimension, then of the remainder."""
    full, rest = size // window_size, size % window_size
    spans = [(0, full, window_size), (full * window_size, 1, rest)]
    return [(start, count, length) for start, count, length in spans if count and length]
