"""Window attention, local and global (paper, section 3.2 and equations 2 to 4).

B: batch size, H, W: sides of a map, C: channels, h: heads, d = C/h: channels a head, w: window
side, N = w²: tokens a window, nW: windows an image.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windows import Region, WindowLayout, join


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
        self._biases: dict[Any, Any] = {}

    def position_bias(self, height: int, width: int) -> Tensor:
        """Return the bias of each query (row) against each key, in a window of real tokens.

        Query (y, x) and key (v, u) share the table's entry at their offset, row y-v+w-1 and
        column x-u+w-1: so a query's biases are a w×w patch of the table, read backwards.

        Where the window is padded, one key more stands for all padded ones together: they have
        the same key and value, so that their weights add up to that of a key whose bias is the
        logarithm of the sum of the exponentials of theirs.

        Args:
            height: Real rows of the window, w if it is not padded.
            width: Real columns.

        Returns:
            (h, n, n), n = height · width, or (h, n, n + 1) where the window is padded.
        """
        w = self.window_size
        table = self.relative_position_bias_table.t().unflatten(1, (2 * w - 1, 2 * w - 1))
        patches = table.unfold(1, w, 1).unfold(2, w, 1).flip(-2, -1)[:, :height, :width]
        n = height * width
        real = patches[..., :height, :width].reshape(self.num_heads, n, n)
        if n == w * w:
            return real
        right, below = patches[..., width:].flatten(-2), patches[..., height:, :width].flatten(-2)
        padding = torch.cat([right, below], -1).float().logsumexp(-1).flatten(1)
        return torch.cat([real, padding[..., None].to(real.dtype)], -1)

    def cached_position_bias(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return :meth:`position_bias`, computed once where nothing can change it.

        It is computed anew after train(), eval(), a move to another device or type, a change of
        the table in place and the loading of another one. (A change through ``.data`` leaves no
        trace: mmengine's EMAHook makes one, before a validation calls eval().)
        """
        table = self.relative_position_bias_table
        learning = self.training or (torch.is_grad_enabled() and table.requires_grad)
        if learning or _is_compiling() or _is_traced() or table.is_inference():
            return self.position_bias(height, width).to(dtype)
        if self._biases.get('of') is not table or self._biases['version'] != table._version:
            self._biases = {'of': table, 'version': table._version}
        key = (height, width, dtype)
        if key not in self._biases:
            self._biases[key] = self.position_bias(height, width).to(dtype)
        return self._biases[key]

    def train(self, mode: bool = True) -> 'WindowAttention':
        """Set training or eval mode."""
        self._biases = {}
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> 'WindowAttention':
        self._biases = {}
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # copies and files are made without
        return {**self.__dict__, '_biases': {}}

    def forward(self, x: Tensor, layout: WindowLayout, global_query: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: (B·H·W, C), in the order of the windows.
            layout: That order.
            global_query: (B, N, C), asked by every window of the image instead of its own tokens;
                None for local attention.

        Returns:
            (B·H·W, C).
        """
        projected = self.qkv(x).unflatten(-1, (-1, self.num_heads, self.head_dim))
        out = [
            self.attend(region, part, global_query)
            for region, part in zip(layout.regions, layout.split(projected), strict=True)
        ]
        return self.drop(self.proj(join(out)))

    def attend(self, region: Region, projected: Tensor, global_query: Tensor | None) -> Tensor:
        """Attend within the windows of a region: (B·nW·n, k, h, d) → (B·nW·n, C)."""
        parts = projected.unflatten(0, (-1, region.num_tokens)).permute(2, 0, 3, 1, 4)
        key, value = parts[-2], parts[-1]
        query = parts[0] if global_query is None else self.queries(region, global_query)
        bias = self.cached_position_bias(region.height, region.width, query.dtype)
        if bias.shape[1] < bias.shape[2]:
            # what the layer gives for a padded token, which is zero
            padding = self.qkv.bias.unflatten(0, (-1, self.num_heads, 1, self.head_dim))
            key, value = (
                torch.cat([real, padded.to(real.dtype).expand(len(real), -1, -1, -1)], 2)
                for real, padded in zip((key, value), padding[-2:], strict=True)
            )
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias[None],
            dropout_p=self.attn_drop_rate if self.training else 0.0,
        )
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    def queries(self, region: Region, global_query: Tensor) -> Tensor:
        """(B, N, C) → (B·nW, h, n, d): those at the real positions, for each window."""
        w = self.window_size
        query = global_query.unflatten(1, (w, w))[:, : region.height, : region.width]
        query = query.flatten(1, 2).unflatten(-1, (self.num_heads, self.head_dim))
        return query.transpose(1, 2).repeat_interleave(region.num_windows, 0)


def _is_compiling() -> bool:
    # torch.compiler tells from version 2.3 on
    tell = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
    return tell()


def _is_traced() -> bool:
    return torch.jit.is_tracing() or torch.jit.is_scripting() or torch.onnx.is_in_onnx_export()


class LocalAttention(WindowAttention):
    """Every token attends to the tokens of its own window."""

    num_projections = 3


class GlobalAttention(WindowAttention):
    """Every window of an image is asked the same queries, made from the whole map."""

    num_projections = 2
