"""Export of weights: conversion to other layouts, and publishing of training checkpoints."""

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from ..version import __version__
from .checkpoint import (
    TABLE,
    UNKNOWN_LICENSE,
    Checkpoint,
    Size,
    open_checkpoint,
    require_finite,
    row,
    shapes_of,
)
from .fit import fit
from .layouts import LAYOUTS
from .reading import read_checkpoint
from .sources import digest_of, fetch, public_name

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
SUFFIXES = ('.safetensors', '.pth', '.pt')
# rows of the table, with a pattern for this package's names
GROUPS = (
    ('stem', r'stem\.'),
    *(
        (f'stage {stage + 1}{part}', rf'stages\.{stage}\.{pattern}')
        for stage in range(4)
        for part, pattern in (
            (' blocks', r'blocks\.'),
            (' query generator', r'query_generator\.'),
            (' downsampler', r'downsample\.'),
        )
    ),
    ('output norms', r'norm\d\.'),
)


@dataclass(frozen=True)
class Group:
    """A row of the table: a group of tensors in the source, and the result of its conversion."""

    name: str
    tensors: int
    parameters: int
    became: str


@dataclass(frozen=True)
class Conversion:
    """The file written, the provenance of its weights, and the table of tensors."""

    out: Path
    provenance: Mapping[str, str]
    groups: Sequence[Group]


def convert_weights(
    source: str | os.PathLike,
    out: str | os.PathLike,
    to: str = 'mmgcvit',
    window_size: Sequence[int] | None = None,
    dtype: str | None = None,
    backbone_only: bool = False,
    prefix: str | None = None,
    ema: bool = False,
    sha256: str | None = None,
) -> Conversion:
    """Write the weights of a GC ViT file in another layout, without executing any code in it.

    Args:
        source: Path or URL, see :func:`mmgcvit.weights.fetch`, in any known layout.
        out: Output file, which must not exist. A ``.safetensors`` file, or a ``.pth`` or ``.pt``
            file with ``state_dict`` and ``meta`` for torch.load.
        to: Layout of the output: mmgcvit, nvidia or timm. Classifiers get the names of mmpretrain,
            NVIDIA or timm. Detectors and segmentors keep the names outside the backbone.
        window_size: Height and width of the attention windows, in tokens: one number for all
            stages, or one per stage. Position bias tables are resized to it. None keeps their
            sizes.
        dtype: float32, float16 or bfloat16. None keeps the dtypes of the source.
        backbone_only: Write only the backbone.
        prefix: See :func:`mmgcvit.weights.load_pretrained`.
        ema: Use EMA weights.
        sha256: Expected SHA-256 of the source.

    Returns:
        A summary of the conversion. The provenance is also written into the file, as safetensors
        metadata or in ``meta``.

    Raises:
        UserError: If the source is not available or readable, an argument is not allowed or
            ``out`` exists.
    """
    out = Path(out).expanduser()
    _check_arguments(out, to, dtype)
    checkpoint = open_checkpoint(source, prefix, ema, sha256)
    checkpoint.require_backbone()
    assert checkpoint.path is not None and checkpoint.layout is not None
    name, size = checkpoint.source, checkpoint.size
    if size is None:
        raise UserError(f'{name} contains only part of a GC ViT backbone: use a complete file')
    windows = _windows(window_size, len(size.depths)) or size.windows
    backbone = fit(checkpoint, _shapes(checkpoint, windows)).tensors
    kept = replace(checkpoint, backbone=backbone, others={} if backbone_only else checkpoint.others)
    state = kept.in_layout(to)
    if dtype:
        state = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in state.items()}
        for tensor_name, tensor in state.items():
            require_finite(f'{tensor_name} as {dtype}', tensor, name)
    known = checkpoint.provenance
    provenance = {
        'source': Path(name).name if '://' not in name else name,
        'source_sha256': digest_of(checkpoint.path),
        'source_layout': checkpoint.layout,
        'layout': to,
        'arch': size.name or 'custom',
        'window_size': row(windows),
        'averaged': str(ema or known.get('averaged') == 'True'),
        'licence': checkpoint.license or UNKNOWN_LICENSE,
        'converted_by': f'mmgcvit {__version__}',
    }
    write_weights(out, state, plain(checkpoint.meta), provenance)
    return Conversion(out, provenance, _groups(checkpoint, kept, to, size, windows))


def _check_arguments(out: Path, to: str, dtype: str | None) -> None:
    if to not in LAYOUTS:
        raise UserError(f'to={to!r} is not allowed: choose one of {", ".join(LAYOUTS)}')
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f'dtype={dtype!r} is not allowed: choose one of {", ".join(DTYPES)}')
    if out.suffix not in SUFFIXES:
        raise UserError(
            f'{out} has the suffix {out.suffix!r}, which is not supported: use one of '
            f'{", ".join(SUFFIXES)}'
        )
    if out.exists():
        raise UserError(f'{out} already exists: remove it or choose a different name')


def _windows(window_size: Sequence[int] | None, stages: int) -> tuple[int, ...] | None:
    if window_size is None:
        return None
    if len(window_size) not in (1, stages) or not 1 <= min(window_size) <= max(window_size) <= 256:
        raise UserError(
            f'window_size={tuple(window_size)} is not allowed: set one size from 1 to 256 for all '
            f'stages, or {stages} of them'
        )
    return tuple(window_size) * (stages if len(window_size) == 1 else 1)


def _shapes(checkpoint: Checkpoint, windows: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint's backbone for the given window sizes."""
    shapes = shapes_of(checkpoint.backbone)
    for name, shape in shapes.items():
        if name.endswith(TABLE):
            window = windows[int(name.split('.')[1])]
            shapes[name] = ((2 * window - 1) ** 2, *shape[1:])
    return shapes


def write_weights(
    out: Path, state: Mapping[str, Tensor], meta: dict, provenance: Mapping[str, str]
) -> None:
    """Write a weights file, in the format of its suffix.

    Args:
        out: Output file. An existing file is replaced.
        state: Tensors.
        meta: Plain values to write under ``meta``. Safetensors files do not have them.
        provenance: Notes on the weights. :attr:`Checkpoint.license` reads ``licence``.

    Raises:
        UserError: If safetensors is needed and not installed.
    """
    # torch.save would write the complete storage behind a view
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if out.suffix == '.safetensors':
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise UserError(
                f'{out} needs the package safetensors: pip install safetensors, or use the '
                'suffix .pth'
            ) from error
        written = save(state, metadata={'format': 'pt', **provenance})
    else:
        file = io.BytesIO()
        torch.save({'meta': {**meta, 'provenance': dict(provenance)}, 'state_dict': state}, file)
        written = file.getvalue()
    write_atomically(out, written)


def _groups(
    source: Checkpoint, kept: Checkpoint, to: str, size: Size, windows: Sequence[int]
) -> list[Group]:
    groups = []
    for name, pattern in GROUPS:
        state = {n: t for n, t in source.backbone.items() if re.match(pattern, n)}
        if state:
            left = LAYOUTS[to].from_own(state)
            became = f'kept, as {_common(left)}' if left else f'skipped: not in the {to} layout'
            if 0 < len(left) < len(state):
                became += f'; {len(state) - len(left)} skipped: not in the {to} layout'
            groups.append(_group(name, state, became))
    tables = {n: t for n, t in source.backbone.items() if n.endswith(TABLE)}
    changes = (
        f'resized from windows {row(size.windows)} to {row(windows)}'
        if size.windows != tuple(windows)
        else f'unchanged, windows {row(size.windows)}'
    )
    groups.append(_group('including position biases', tables, changes))
    if source.others:
        became = 'kept' if kept.others else 'skipped: backbone only'
        groups.append(_group(f'others: {_common(source.others)}', source.others, became))
    if source.unused:
        groups.append(Group(_common(source.unused), len(source.unused), 0, 'skipped'))
    if source.other_keys:
        names = ', '.join(source.other_keys[:6])
        groups.append(Group(f'other entries: {names}', 0, 0, 'skipped'))
    return groups


def _group(name: str, state: Mapping[str, Tensor], became: str) -> Group:
    return Group(name, len(state), sum(tensor.numel() for tensor in state.values()), became)


def _common(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    """Return the common prefixes of names, such as ``levels.0.*``, or up to two names."""
    names = list(names)
    if len(names) <= 2:
        return ', '.join(names)
    parts = [name.split('.') for name in names]
    depth = 0
    while all(len(each) > depth + 1 and each[depth] == parts[0][depth] for each in parts):
        depth += 1
    starts = sorted({'.'.join(each[: max(depth, 1)]) for each in parts})
    return ', '.join(f'{start}.*' for start in starts[:4]) + (', …' if len(starts) > 4 else '')


def publish_model(checkpoint: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write the weights and metadata of a checkpoint to a file that contains only plain values.

    A training checkpoint also contains the state of the optimizer and a history of the losses. The
    history refers to a class of mmengine, so ``torch.load`` rejects the checkpoint by default since
    torch 2.6.

    Args:
        checkpoint: Path or URL. No code in the file is executed.
        out: Output file. The first 8 digits of its SHA-256 are added to its name: ``weights.pth``
            becomes ``weights-1a2b3c4d.pth``. torch.hub checks downloads against these digits. The
            file has the checkpoint's ``state_dict`` and ``meta``. mmdet and mmseg read the class
            names from ``meta``.

    Returns:
        The file written.

    Raises:
        UserError: If the checkpoint is not available or readable, or has no ``state_dict``.
    """
    content = read_checkpoint(fetch(checkpoint))
    if not isinstance(content, dict) or not isinstance(content.get('state_dict'), dict):
        raise UserError(
            f'{public_name(str(checkpoint))} has no state_dict: use a checkpoint written by a '
            'training run'
        )
    kept = {'meta': plain(content.get('meta', {})), 'state_dict': content['state_dict']}
    file = io.BytesIO()
    torch.save(kept, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    out = Path(out).expanduser()
    return write_atomically(out.with_name(f'{out.stem}-{digest}{out.suffix}'), file.getvalue())


def plain(value: Any) -> Any:
    """Convert NumPy values to lists and numbers, and drop objects that torch.load rejects.

    Raises:
        UserError: If the value is nested too deeply to be written.
    """
    try:
        return _plain(value, {})
    except RecursionError as error:
        raise UserError("the file's meta is nested too deeply to be written") from error


def _plain(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.Tensor
    ):
        return value
    if id(value) in done:  # values can be shared or contain themselves
        return done[id(value)]
    if isinstance(value, dict):
        new = done[id(value)] = {}
        new.update((key, _plain(item, done)) for key, item in value.items())
        return new
    if isinstance(value, list):
        new = done[id(value)] = []
        new.extend(_plain(item, done) for item in value)
        return new
    if type(value) in (tuple, set, frozenset):
        done[id(value)] = None
        done[id(value)] = new = type(value)(_plain(item, done) for item in value)
        return new
    return None  # a stand-in for an object of an unknown class
