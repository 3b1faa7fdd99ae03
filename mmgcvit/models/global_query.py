"""The global query generator (paper, section 3.2, 'global query generator').

B: batch size, H, W: sides of a map, C: channels, w: window side, N = w²: tokens a window.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .conv import FusedMBConv


class QueryLayer(nn.Module):
    """A fused MBConv, then a pooling that halves the sides where one is asked for."""

    def __init__(self, dim: int, pool: bool) -> None:
        super().__init__()
        self.mbconv = FusedMBConv(dim)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌈H/2⌉, ⌈W/2⌉), or (B, C, H, W) without pooling."""
        return self.pool(self.mbconv(x))


class GlobalQueryGenerator(nn.Sequential):
    """Condense a stage's whole map into one window of queries.

    Args:
        dim: Channels C of the map.
        window_size: Side w of the stage's windows.
        num_downsamples: How many times the sides are halved; with 0 there is one layer that
            does not pool.
    """

    def __init__(self, dim: int, window_size: int, num_downsamples: int) -> None:
        pool = num_downsamples > 0
        super().__init__(*(QueryLayer(dim, pool) for _ in range(max(num_downsamples, 1))))
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, N, C): what every window of an image asks in global attention."""
        query = super().forward(x.permute(0, 3, 1, 2))
        size = (self.window_size, self.window_size)
        # to the size it has it changes nothing, and a graph for any size has to have it
        query = F.interpolate(query, size, mode='bicubic', align_corners=False)
        return query.flatten(2).transpose(1, 2)
