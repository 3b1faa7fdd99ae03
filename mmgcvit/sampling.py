"""Choosing a few of many things."""

import numpy as np


def evenly(length: int, count: int) -> list[int]:
    """At most ``count`` indices spread over ``range(length)``, both ends included.

    Args:
        length: Number of things to choose from, at least 1.
        count: Number wanted, at least 1.

    Returns:
        Ascending, each at most once.
    """
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
