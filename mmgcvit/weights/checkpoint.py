"""The content of a weights file: a GC ViT backbone, its size, and the rest of the network.

:mod:`.fit` loads it into a model.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models.arch import ARCHS, Arch
from .layouts import (
    LAYOUTS,
    State,
    find_backbones,
    is_of_backbone,
    is_of_wrappers,
    network_of,
    without_inner_wrappers,
)
from .reading import read_checkpoint
from .sources import fetch, public_name

EMA_KEYS = ('state_dict_ema', 'model_ema')
STATE_KEYS = ('state_dict', 'model')
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNKNOWN_LICENSE = 'of the source'
TABLE = '.relative_position_bias_table'


@dataclass(frozen=True)
class Size:
    """The size of a backbone, inferred from its tensors. Tuples have one entry per stage.

    Attributes:
        embed_dims: Channels of the first stage.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        hidden: Hidden channels of the MLP of each stage.
        layer_scale: Whether residual branches have layer scale.
        windows: Height and width of the attention windows of each stage, in tokens. :meth:`fits`
            does not compare them.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    hidden: tuple[int, ...]
    layer_scale: bool
    windows: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> 'Size | None':
        """Infer the size from names and shapes, or return None if a tensor is missing."""
        blocks: dict[int, set[int]] = {}
        for name in shapes:
            if match := re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', name):
                blocks.setdefault(int(match[1]), set()).add(int(match[2]))
        stages = sorted(blocks)
        stem = shapes.get('stem.conv.weight', ())
        tables = [shapes.get(f'stages.{i}.blocks.0.attn{TABLE}', ()) for i in stages]
        linears = [shapes.get(f'stages.{i}.blocks.0.mlp.fc1.weight', ()) for i in stages]
        if len(stem) != 4 or stages != list(range(len(stages))) or not stages:
            return None
        if any(len(shape) != 2 for shape in (*tables, *linears)):
            return None
        return cls(
            embed_dims=stem[0],
            depths=tuple(len(blocks[stage]) for stage in stages),
            num_heads=tuple(shape[1] for shape in tables),
            hidden=tuple(shape[0] for shape in linears),
            layer_scale='stages.0.blocks.0.gamma1' in shapes,
            windows=tuple((math.isqrt(shape[0]) + 1) // 2 for shape in tables),
        )

    @classmethod
    def _of_arch(cls, arch: Arch) -> 'Size':
        hidden = tuple(int(dim * arch.mlp_ratio) for dim in arch.dims)
        scale = arch.layer_scale_init_value is not None
        return cls(arch.embed_dims, arch.depths, arch.num_heads, hidden, scale, windows=())

    def fits(self, other: 'Size') -> bool:
        """Whether the stages present in both have the same size."""
        stages = min(len(self.depths), len(other.depths))
        return self._compared(stages) == other._compared(stages)

    def _compared(self, stages: int) -> tuple:
        per_stage = (self.depths, self.num_heads, self.hidden)
        return (self.embed_dims, self.layer_scale, *(each[:stages] for each in per_stage))

    @property
    def name(self) -> str | None:
        """The published size, or None for a custom one.

        If only the first stages are known and several sizes match, all of them are listed.
        """
        fitting = [name for name, arch in ARCHS.items() if self.fits(self._of_arch(arch))]
        return '/'.join(fitting) or None

    def __str__(self) -> str:
        return (
            f'{self.name or "of a custom size"} (embed_dims {self.embed_dims}, depths '
            f'{row(self.depths)}, heads {row(self.num_heads)}, MLP channels {row(self.hidden)}, '
            f'{"with" if self.layer_scale else "no"} layer scale, windows {row(self.windows)})'
        )


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, sorted into the backbone, the rest of its network, and others.

    Attributes:
        source: Source without credentials.
        layout: Key in :data:`LAYOUTS` of the backbone's layout in the file, or None if the file has
            no GC ViT backbone or several.
        backbone: Tensors of the backbone, under this package's names.
        others: Tensors of the rest of the network, under the names used by mmpretrain, mmdet and
            mmseg, such as ``head.fc.*`` in a classifier and ``neck.*`` in a detector. Contains all
            tensors if ``layout`` is None.
        unused: Tensors that belong to neither, under their names in the file.
        names: Names of all tensors in the file, without those that compiled modules insert.
        prefixes: Prefix of the names of each GC ViT backbone in the file.
        meta: Metadata.
        other_keys: Other top-level keys, such as ``optimizer``.
        is_ema: Whether the tensors are the EMA weights of the file.
        path: Local file, or None.
    """

    source: str
    layout: str | None = None
    backbone: State = field(default_factory=dict)
    others: State = field(default_factory=dict)
    unused: State = field(default_factory=dict)
    names: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    other_keys: tuple[str, ...] = ()
    is_ema: bool = False
    path: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the network was trained with, if the metadata has them."""
        saved = self.meta.get('dataset_meta')
        names = saved.get('classes') if isinstance(saved, Mapping) else self.meta.get('CLASSES')
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
        return ()

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], source: str, prefix: str | None = None
    ) -> 'Checkpoint':
        """Sort the tensors of a state dict.

        Args:
            state: Names and tensors, in any known layout. Other entries are skipped.
            source: Source of the tensors, for messages.
            prefix: Prefix of the names of the backbone, or of a larger network that contains it.
                By default, every combination of the prefixes that wrappers add is recognized.

        Raises:
            UserError: If no name has the prefix, two tensors have the same name, or a tensor of the
                backbone contains anything but finite floating-point numbers.
        """
        tensors: State = {}
        for name, tensor in state.items():
            if isinstance(name, str) and isinstance(tensor, Tensor):
                add(tensors, without_inner_wrappers(name), tensor, source, name)
        start = ''
        if prefix:
            start = without_inner_wrappers(prefix.rstrip('.')) + '.'
            if not any(name.startswith(start) for name in tensors):
                raise UserError(
                    f'prefix={start!r} matches none of the names in {source}, which has names like '
                    f'{sample(tensors)}'
                )
        backbones = find_backbones(tensors)
        prefixes = tuple(place for place, _ in backbones)
        chosen = [
            (place, layout)
            for place, layout in backbones
            if place.startswith(start) and is_of_wrappers(place[len(start) :])
        ]
        if prefix is not None and len(chosen) > 1:
            chosen = [each for each in chosen if each[0] == start] or chosen
        if len(chosen) != 1:
            return cls(source, others=tensors, names=tuple(tensors), prefixes=prefixes)
        ((place, layout),) = chosen
        return replace(cls._sorted(tensors, source, place, layout), prefixes=prefixes)

    @classmethod
    def _sorted(cls, tensors: State, source: str, prefix: str, layout: str) -> 'Checkpoint':
        network = network_of(prefix)
        is_alone = network == prefix
        backbone: State = {}
        others: State = {}
        unused: State = {}
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                if name.startswith(network) and not is_alone:
                    add(others, name.removeprefix(network), tensor, source, name)
                else:
                    unused[name] = tensor
                continue
            # an index buffer that NVIDIA's attention saves
            if name.endswith('.relative_position_index'):
                unused[name] = tensor
                continue
            own, converted = LAYOUTS[layout].to_own(name.removeprefix(prefix), tensor)
            is_of_head = is_alone and own.startswith('head.fc.')
            if is_of_head or is_of_backbone(own):
                _check_tensor(name, tensor, source)
                add(others if is_of_head else backbone, own, converted, source, name)
            else:
                unused[name] = tensor
        return cls(source, layout, backbone, others, unused, tuple(tensors))

    @classmethod
    def from_content(
        cls, content: object, source: str, prefix: str | None = None, ema: bool = False
    ) -> 'Checkpoint':
        """Sort the tensors of a file's content, which may contain other entries as well.

        Args:
            content: Return value of :func:`read_checkpoint`.
            source: Source of the content, for messages.
            prefix: See :meth:`from_state`.
            ema: See :func:`open_checkpoint`.

        Raises:
            UserError: See :meth:`from_state`; also if there are no such tensors.
        """
        checkpoint = cls.from_state(tensors_of(content, source, ema), source, prefix)
        entries = content if isinstance(content, Mapping) else {}
        meta = entries.get('meta')
        other_keys = tuple(
            str(key)
            for key, value in entries.items()
            if not isinstance(value, Tensor) and key not in ('meta', *STATE_KEYS)
        )
        return replace(
            checkpoint,
            meta=meta if isinstance(meta, Mapping) else {},
            other_keys=other_keys,
            is_ema=ema,
        )

    def require_backbone(self) -> None:
        """Raise UserError if the file has no GC ViT backbone, or several."""
        if self.layout is not None:
            return
        if self.prefixes:
            raise UserError(
                f'{self.source} contains GC ViT backbones under other prefixes: select one with '
                + ' or '.join(f'prefix={prefix!r}' for prefix in self.prefixes[:4])
            )
        raise UserError(
            f'{self.source} does not contain a GC ViT backbone: it has names like '
            f'{sample(self.names)}; use a file in the layout of {", ".join(LAYOUTS)}, and set '
            'prefix if the backbone is part of a larger model'
        )

    @property
    def size(self) -> Size | None:
        """The backbone's size, or None if the backbone is incomplete."""
        return Size.of(shapes_of(self.backbone))

    @property
    def license(self) -> str:
        """License of the weights, empty if unknown. :func:`convert_weights` copies it."""
        noted = self.provenance.get('licence', UNKNOWN_LICENSE)
        if noted != UNKNOWN_LICENSE:
            return noted
        return LAYOUTS[self.layout].license if self.layout else ''

    @property
    def provenance(self) -> dict[str, str]:
        """Notes on the source of the weights that :func:`convert_weights` wrote into the file."""
        # safetensors metadata cannot be nested
        known = self.meta.get('provenance', self.meta)
        known = known if isinstance(known, Mapping) else {}
        return {key: value for key, value in known.items() if isinstance(value, str)}

    def in_layout(self, layout: str) -> State:
        """Return the tensors of the network under the names of a layout.

        In this package's layout, a bare backbone has no prefix. A backbone in a network has the
        prefix ``backbone.``, as in mmpretrain, mmdet and mmseg. NVIDIA's and timm's classifiers
        have no prefix.

        Raises:
            UserError: If the layout does not support such a network.
        """
        rules = LAYOUTS[layout]
        is_classifier = all(name.startswith('head.fc.') for name in self.others)
        if rules.is_classifier_only and not is_classifier:
            raise UserError(
                f'the {layout} layout supports only backbones and classifiers, but the network has '
                f'tensors like {sample(self.others)}: convert only the backbone'
            )
        if not self.others:
            return rules.from_own(self.backbone)
        prefix = rules.classifier_prefix if is_classifier else 'backbone.'
        backbone = {prefix + name: t for name, t in rules.from_own(self.backbone).items()}
        return {**backbone, **(rules.from_own(self.others) if is_classifier else self.others)}


def open_checkpoint(
    source: str | os.PathLike,
    prefix: str | None = None,
    ema: bool = False,
    sha256: str | None = None,
) -> Checkpoint:
    """Read a weights file in any known format and layout, without executing any code in it.

    Args:
        source: Path or URL, see :func:`mmgcvit.weights.fetch`.
        prefix: Prefix of the names of the backbone, or of a larger network that contains it. By
            default, every combination of the prefixes that wrappers add is recognized.
        ema: Use the EMA weights (exponential moving average), which NVIDIA's and timm's training
            checkpoints contain in addition to the regular ones.
        sha256: Expected SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        UserError: If the file is not available or readable, or its tensors are not weights.
    """
    path = fetch(source, sha256)
    content = read_checkpoint(path)
    checkpoint = Checkpoint.from_content(content, public_name(os.fspath(source)), prefix, ema)
    return replace(checkpoint, path=path)


def tensors_of(content: object, source: str, ema: bool = False) -> State:
    """Return the names and tensors in the content of a file, without its other entries.

    Args:
        content: Content of the file.
        source: Source of the file, for messages.
        ema: Use EMA weights. mmengine's EMAHook stores them as ``state_dict``.

    Raises:
        UserError: If there are no tensors, or none of the requested kind.
    """
    ema_state = _first(content, EMA_KEYS)
    state = _first(content, STATE_KEYS)
    if ema:
        is_hooked = state is not None and _first(content, ('ema_state_dict',)) is not None
        if ema_state is None and not is_hooked:
            raise UserError(
                f'{source} has no EMA weights (expected under {" or ".join(EMA_KEYS)}): '
                'remove ema=True'
            )
        state = state if ema_state is None else ema_state
    elif state is None and ema_state is not None:
        raise UserError(f'{source} contains only EMA weights: set ema=True')
    if state is None:
        state = content if isinstance(content, Mapping) else {}
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(
            f'{source} contains no tensors: expected a dict of names and tensors, at the top level '
            "or under 'state_dict' or 'model'"
        )
    return tensors


def _first(content: object, keys: tuple[str, ...]) -> Mapping | None:
    if not isinstance(content, Mapping):
        return None
    found = (content[key] for key in keys if isinstance(content.get(key), Mapping))
    return next(found, None)


def add(state: State, name: str, tensor: Tensor, source: str, original: str) -> None:
    """Add a tensor to a state dict under its new name.

    Raises:
        UserError: If the name is already taken.
    """
    if name in state:
        raise UserError(
            f'{source} has two tensors for {name}, one of them {original}: save only one network, '
            'or select one with prefix in init_cfg'
        )
    state[name] = tensor


def _check_tensor(name: str, tensor: Tensor, source: str) -> None:
    kind = None
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = 'is sparse, quantized, nested or on the meta device'
    elif tensor.dtype not in DTYPES:
        kind = f'has dtype {tensor.dtype}'
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = 'is an expanded view of fewer values'
    if kind:
        raise UserError(
            f'{source}: {name} {kind}; only dense 16- to 64-bit floating-point tensors are '
            'supported: use the original checkpoint'
        )
    require_finite(name, tensor, source)


def require_finite(name: str, tensor: Tensor, source: str) -> None:
    """Reject a floating-point tensor with NaN or infinity.

    Raises:
        UserError: If the tensor contains any.
    """
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(
            f'{source} contains NaN or infinity in {name}: its training diverged, or the file is '
            'damaged; use another checkpoint'
        )


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def sample(names: Iterable[str]) -> str:
    """Return the first few names, for messages."""
    return ', '.join(list(names)[:3]) or 'none'


def row(numbers: Iterable[int]) -> str:
    """Return numbers separated by spaces."""
    return ' '.join(map(str, numbers))
