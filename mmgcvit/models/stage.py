"""Blocks and stages (paper, section 3 and equation 1).

B: batch size, H, W: sides of a map, C: channels, w: window side, N = w²: tokens a window.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import GlobalAttention, LocalAttention
from .conv import Downsampler
from .global_query import GlobalQueryGenerator
from .graphs import serves_other_sides
from .recomputed import linear_of
from .windows import PaddedLayout, WindowLayout


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): drop a residual branch for whole samples."""

    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """(B·H·W, C) → (B·H·W, C), kept samples scaled so that the mean stays."""
        if not self.training or self.drop_rate == 0:
            return x
        keep_rate = 1 - self.drop_rate
        kept = x.new_empty(layout.batch).bernoulli_(keep_rate)
        return x * layout.spread(kept / keep_rate)


class MLP(nn.Module):
    """Two linear layers on each token."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Of the normalized tokens: (..., C) → (..., C)."""
        hidden = linear_of(norm, self.fc1, x)
        return self.drop(linear_of(F.gelu, self.fc2, hidden))


class Block(nn.Module):
    """Attention, then an MLP, each on the normalized map and added to it.

    Args:
        attention: Local or global attention over C channels.
        dim: Channels C.
        mlp_ratio: Hidden channels of the MLP over C.
        layer_scale_init_value: Initial value of the branches' scale, None for no scale.
        drop_rate: Dropout after the MLP.
        drop_path_rate: Stochastic depth of both branches.
    """

    def __init__(
        self,
        attention: LocalAttention | GlobalAttention,
        dim: int,
        mlp_ratio: float,
        layer_scale_init_value: float | None,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        if layer_scale_init_value is None:
            self.gamma1 = self.gamma2 = None
        else:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))

    def forward(self, x: Tensor, layout: WindowLayout, global_query: Tensor | None) -> Tensor:
        """(B·H·W, C) in the order of the windows, queries (B, N, C) → (B·H·W, C)."""
        branch = self.attn(x, self.norm1, layout, global_query)
        x = x + self.drop_path(_scaled(branch, self.gamma1), layout)
        branch = self.mlp(x, self.norm2)
        return x + self.drop_path(_scaled(branch, self.gamma2), layout)


def _scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else branch * gamma


class Stage(nn.Module):
    """Blocks of local and global attention in turn, on maps of one size.

    Args:
        dim: Channels C.
        num_heads: Attention heads.
        window_size: Side w of the windows.
        query_downsamples: How many times the query generator halves the map.
        mlp_ratio: Hidden channels of a block's MLP over C.
        layer_scale_init_value: Initial value of the blocks' residual scale, None for no scale.
        drop_rate: Dropout after a block's projection and MLP.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rates: Stochastic depth, one rate a block: so many blocks are built.
        downsample: Whether a downsampler to 2·C channels follows, which the caller runs.
        with_cp: Whether blocks are recomputed in the backward pass to save memory.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        query_downsamples: int,
        mlp_ratio: float,
        layer_scale_init_value: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rates: Sequence[float],
        downsample: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.window_size = window_size
        self.blocks = nn.ModuleList()
        for index, drop_path_rate in enumerate(drop_path_rates):
            attention_type = GlobalAttention if index % 2 else LocalAttention
            attention = attention_type(dim, num_heads, window_size, attn_drop_rate, drop_rate)
            block = Block(
                attention, dim, mlp_ratio, layer_scale_init_value, drop_rate, drop_path_rate
            )
            self.blocks.append(block)
        has_global_block = len(self.blocks) > 1
        self.query_generator = (
            GlobalQueryGenerator(dim, window_size, query_downsamples) if has_global_block else None
        )
        self.downsample = Downsampler(dim, 2 * dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C), before the downsampler."""
        global_query = None if self.query_generator is None else self.query_generator(x)
        batch, height, width, _ = x.shape
        layout_of = PaddedLayout if serves_other_sides(height, width) else WindowLayout.of_maps
        layout = layout_of(batch, height, width, self.window_size)
        tokens = layout.pack(x)
        for index, block in enumerate(self.blocks):
            query = global_query if index % 2 else None
            if self.with_cp and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, layout, query, use_reentrant=False)
            else:
                tokens = block(tokens, layout, query)
        return layout.unpack(tokens)
