"""Position biases of tables that do not change, for evaluation on a CPU."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .position_bias import position_biases
from .windows import Windows


@dataclass
class _Entry:
    table: Tensor
    biases: dict[Hashable, Tensor]


_cache = WeakIdKeyDictionary()


def cached_position_biases(table: Tensor, windows: Windows, dtype: torch.dtype) -> list[Tensor]:
    """Return :func:`.position_biases`, computed again where anything has changed.

    Contents are compared: there are ways to change a table without a trace, such as through
    ``.data`` or a NumPy array of the same memory. Full windows are alike in images of all sizes;
    of smaller ones, those of the last image are kept: those of many sizes would fill the memory.
    """
    entry = _cache.get(table)
    if entry is None or not torch.equal(entry.table, table):
        entry = _Entry(table.detach().clone(), {})
    names = {(region.height, region.width, dtype): region for region in windows.regions}
    missing = {name: region for name, region in names.items() if name not in entry.biases}
    if missing:
        found = position_biases(table, windows, dtype, list(missing.values()), is_kept=True)
        biases = entry.biases | dict(zip(missing, found, strict=True))
        full = windows.window_size, windows.window_size
        kept = {name: bias for name, bias in biases.items() if name in names or name[:2] == full}
        # in one piece: another thread may read it
        entry = _cache[table] = _Entry(entry.table, kept)
    return [entry.biases[name] for name in names]


def forget_position_biases(table: Tensor) -> None:
    """Free the memory of a table's biases."""
    _cache.pop(table, None)
