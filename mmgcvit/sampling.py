"""Evenly spaced subsampling."""

import numpy as np


def evenly(length: int, count: int) -> list[int]:
    """Return at most ``count`` evenly spaced indices of ``range(length)``, both ends included.

    Args:
        length: Number of items, at least 1.
        count: Number of indices, at least 1.

    Returns:
        Indices in ascending order, without duplicates.
    """
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
