"""The size of a backbone, told from its tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..models.arch import ARCHS, Arch


@dataclass(frozen=True)
class Sizes:
    """What the tensors of a backbone tell of its size; one entry for each stage that is there.

    Attributes:
        embed_dims: Channels of the first stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        hidden: Hidden channels of the MLP of each stage.
        layer_scale: Whether residual branches have a scale.
        windows: Side of the attention windows of each stage, in tokens; not compared.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    hidden: tuple[int, ...]
    layer_scale: bool
    windows: tuple[int, ...]

    def fits(self, other: 'Sizes') -> bool:
        """Whether the stages that both have are of one size."""
        stages = min(len(self.depths), len(other.depths))
        return self._compared(stages) == other._compared(stages)

    def _compared(self, stages: int) -> tuple:
        per_stage = (self.depths, self.num_heads, self.hidden)
        return (self.embed_dims, self.layer_scale, *(each[:stages] for each in per_stage))

    @property
    def name(self) -> str | None:
        """The published size that this is, None if it is none; several if too few stages tell."""
        fitting = [name for name, arch in ARCHS.items() if self.fits(_published(arch))]
        return '/'.join(fitting) or None

    def __str__(self) -> str:
        return (
            f'{self.name or "of a size of its own"} (embed_dims {self.embed_dims}, depths '
            f'{_row(self.depths)}, heads {_row(self.num_heads)}, MLP channels {_row(self.hidden)}, '
            f'{"with" if self.layer_scale else "no"} layer scale, windows {_row(self.windows)})'
        )


def _published(arch: Arch) -> Sizes:
    return Sizes(
        arch.embed_dims,
        arch.depths,
        arch.num_heads,
        tuple(int(dim * arch.mlp_ratio) for dim in arch.dims),
        arch.layer_scale_init_value is not None,
        windows=(),
    )


def infer_sizes(state: Mapping[str, Tensor]) -> Sizes | None:
    """Return the size of a backbone with this package's names; None if it has not all its parts."""
    blocks: dict[int, set[int]] = {}
    for name in state:
        if match := re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    stem = state.get('stem.conv.weight')
    stages = sorted(blocks)
    if stem is None or stem.dim() != 4 or stages != list(range(len(stages))) or not stages:
        return None
    tables, hidden = [], []
    for stage in stages:
        table = state.get(f'stages.{stage}.blocks.0.attn.relative_position_bias_table')
        fc1 = state.get(f'stages.{stage}.blocks.0.mlp.fc1.weight')
        if table is None or fc1 is None or table.dim() != 2 or fc1.dim() != 2:
            return None
        tables.append(table)
        hidden.append(len(fc1))
    return Sizes(
        embed_dims=len(stem),
        depths=tuple(len(blocks[stage]) for stage in stages),
        num_heads=tuple(table.shape[1] for table in tables),
        hidden=tuple(hidden),
        layer_scale='stages.0.blocks.0.gamma1' in state,
        windows=tuple((math.isqrt(len(table)) + 1) // 2 for table in tables),
    )


def _row(numbers: tuple[int, ...]) -> str:
    return ' '.join(map(str, numbers))
