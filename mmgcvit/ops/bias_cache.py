"""Cache of position biases, for evaluation on a CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .position_bias import position_biases
from .windows import Windows


@dataclass
class _Entry:
    table: Tensor
    biases: dict[tuple[int, int, torch.dtype], Tensor]  # by height and width of the window


_cache = WeakIdKeyDictionary()


def cached_position_biases(table: Tensor, windows: Windows, dtype: torch.dtype) -> list[Tensor]:
    """Return :func:`.position_biases` from the cache, after computing what is missing or outdated.

    The contents of the table are compared, since a change through ``.data`` or a NumPy array that
    shares memory leaves no trace in its version counter. Biases of full windows are the same for
    all image sizes and stay in the cache. For smaller windows, the cache only holds the biases of
    the last image, because biases for many image sizes would fill the memory.
    """
    entry = _cache.get(table)
    if entry is None or not torch.equal(entry.table, table):
        entry = _Entry(table.detach().clone(), {})
    names = {(region.height, region.width, dtype): region for region in windows.regions}
    missing = {name: region for name, region in names.items() if name not in entry.biases}
    if missing:
        computed = position_biases(table, windows, dtype, list(missing.values()), is_kept=True)
        biases = entry.biases | dict(zip(missing, computed, strict=True))
        full = windows.window_size, windows.window_size
        kept = {name: bias for name, bias in biases.items() if name in names or name[:2] == full}
        # replaced rather than modified, since another thread may be reading the entry
        entry = _cache[table] = _Entry(entry.table, kept)
    return [entry.biases[name] for name in names]


def forget_position_biases(table: Tensor) -> None:
    """Remove a table's biases from the cache."""
    _cache.pop(table, None)
