"""Window attention, local and global (paper, section 3.2 and equations 2 to 4).

B: batch size, H, W: sides of a map, C: channels, h: heads, d = C/h: channels a head, w: window
side, N = w²: tokens a window.
"""

import torch
from torch import Tensor, nn

from .graphs import is_recorded
from .position_bias import BiasCache, position_bias
from .recomputed import linear_of
from .window_attention import RecomputedAttention, attend
from .windows import Region, WindowLayout


class WindowAttention(nn.Module):
    """What local and global attention share: windows, position bias, output projection.

    Args:
        dim: Channels C.
        num_heads: Heads h, a divisor of C.
        window_size: Side w.
        attn_drop_rate: Dropout of the attention weights.
        drop_rate: Dropout of the output.
    """

    # of query, key and value, those that are projected from the map itself
    num_projections: int

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = window_size
        self.attn_drop_rate = attn_drop_rate
        # called qkv in global attention too, where it gives k and v: so do all existing weights
        self.qkv = nn.Linear(dim, self.num_projections * dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._biases = BiasCache()

    def train(self, mode: bool = True) -> 'WindowAttention':
        """Set training or eval mode."""
        self._biases.clear()
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> 'WindowAttention':
        self._biases.clear()
        return super()._apply(*args, **kwargs)

    def forward(
        self, x: Tensor, norm: nn.Module, layout: WindowLayout, global_query: Tensor | None
    ) -> Tensor:
        """Attend within windows of the normalized map.

        Args:
            x: (B·H·W, C), in the order of the windows.
            norm: What normalizes it.
            layout: The order of the windows.
            global_query: (B, N, C), asked by every window of the image instead of its own tokens;
                None for local attention.

        Returns:
            (B·H·W, C).
        """
        by_head = (-1, self.num_heads, self.head_dim)
        projected = linear_of(lambda x: layout.zero_padding(norm(x)), self.qkv, x)
        projected = projected.unflatten(-1, by_head)
        # key and value of a padded token, which is zero
        padded = self.qkv.bias.view(by_head)[-2:].to(projected.dtype)
        if global_query is not None:
            sides = (self.window_size, self.window_size)
            global_query = global_query.unflatten(1, sides).unflatten(-1, by_head[1:])
            global_query = global_query.to(projected.dtype)
        drop_rate = self.attn_drop_rate if self.training else 0.0
        table = self.relative_position_bias_table
        learns = torch.is_grad_enabled() and table.requires_grad
        if learns and table.device.type == 'cpu' and drop_rate == 0 and not is_recorded():
            out = RecomputedAttention.apply(layout, projected, global_query, padded, table)
        else:
            biases = [self._position_bias(region, projected.dtype) for region in layout.regions]
            out = attend(layout, projected, global_query, padded, biases, drop_rate)
        return self.drop(self.proj(out.flatten(1)))

    def _position_bias(self, region: Region, dtype: torch.dtype) -> Tensor:
        table, size = self.relative_position_bias_table, (region.height, region.width)
        learns = self.training or (torch.is_grad_enabled() and table.requires_grad)
        if learns or is_recorded() or table.is_inference():
            return position_bias(table, self.window_size, *size).to(dtype)
        return self._biases.get(table, self.window_size, *size, dtype)


class LocalAttention(WindowAttention):
    """Every token attends to the tokens of its own window."""

    num_projections = 3


class GlobalAttention(WindowAttention):
    """Every window of an image is asked the same queries, made from the whole map."""

    num_projections = 2
