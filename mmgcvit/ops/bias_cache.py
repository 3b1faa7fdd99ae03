"""Position biases of tables that do not change, for evaluation on a CPU."""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .position_bias import position_biases
from .windows import Windows


class _Entry(NamedTuple):
    table: Tensor
    name: Hashable
    biases: list[Tensor]


# of each table the last ones only: edges of images of many sizes would fill the memory
_cache = WeakIdKeyDictionary()


def cached_position_biases(table: Tensor, windows: Windows, dtype: torch.dtype) -> list[Tensor]:
    """Return :func:`.position_biases` in a dtype, computed again when anything has changed.

    Contents are compared: there are ways to change a table without a trace, such as through
    ``.data`` or a NumPy array of the same memory.
    """
    name = windows.window_size, windows.regions, dtype
    entry = _cache.get(table)
    if entry is None or entry.name != name or not torch.equal(entry.table, table):
        biases = [bias.to(dtype, copy=True) for bias in position_biases(table, windows)]
        entry = _cache[table] = _Entry(table.detach().clone(), name, biases)
    return entry.biases


def forget_position_biases(table: Tensor) -> None:
    """Free the memory of a table's biases."""
    _cache.pop(table, None)
