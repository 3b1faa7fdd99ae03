"""Relative position bias tables of another window size.

w: window side, h: heads. A table holds (2w-1)² offsets × h.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from .errors import WeightsError


def resize_bias_table(table: Tensor, num_offsets: int) -> Tensor:
    """Resize a relative position bias table bicubically to another window size.

    A table that has the size already is returned as it is.

    Args:
        table: ((2w-1)², h).
        num_offsets: (2w'-1)² offsets wanted.

    Returns:
        (num_offsets, h), of the table's dtype.

    Raises:
        WeightsError: If the table is not 2-dimensional or does not belong to square windows.
    """
    side = math.isqrt(len(table)) if table.dim() == 2 else 0
    if side % 2 == 0 or side * side != len(table):
        raise WeightsError(
            f'a relative position bias table of shape {tuple(table.shape)} cannot be resized: '
            'it must be 2-dimensional with (2w-1)² rows for windows of w × w tokens'
        )
    if len(table) == num_offsets:
        return table
    wanted = math.isqrt(num_offsets)
    grid = table.t().unflatten(1, (side, side))[None].float()
    grid = F.interpolate(grid, (wanted, wanted), mode='bicubic', align_corners=False)
    return grid[0].flatten(1).t().to(table.dtype)
