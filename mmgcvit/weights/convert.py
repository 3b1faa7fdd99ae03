"""Weights files rewritten in the layout of another release, with a table of what became of them."""

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from ..version import __version__
from .addresses import public_name
from .contents import (
    STATE_KEYS,
    Contents,
    join_tensors,
    require_finite,
    sort_tensors,
    tensors_of,
)
from .layouts import LAYOUTS
from .pretrained import fit_tables
from .publish import plain
from .reading import read_checkpoint
from .sizes import infer_sizes
from .sources import digest_of, fetch

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}
SUFFIXES = ('.safetensors', '.pth', '.pt')
# groups of tensors in the table, by what their names here start with
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
    """A row of the table: tensors of the source and what became of them."""

    name: str
    tensors: int
    parameters: int
    became: str


@dataclass(frozen=True)
class Conversion:
    """A file written, what was known of its source, and the table of its tensors."""

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
    """Write the weights of a GC ViT file in another layout, without executing anything in it.

    Args:
        source: Path or URL, see :func:`mmgcvit.weights.fetch`, in any known layout.
        out: The file to write, which must not exist: ``.safetensors``, or ``.pth`` or ``.pt``
            with ``state_dict`` and ``meta`` for torch.load.
        to: Layout: mmgcvit, nvidia or timm. A classifier gets the names of mmpretrain's, of
            NVIDIA's or of timm's; detectors and segmentors keep the names around the backbone.
        window_size: Sides of the attention windows, one for all stages or one each, to which
            position bias tables are resized. None leaves them.
        dtype: float32, float16 or bfloat16. None leaves them.
        backbone_only: Leave out all but the backbone.
        prefix: As of :func:`mmgcvit.weights.load_pretrained`, like the two below.
        ema: Take averaged weights.
        sha256: Digest that the source must have.

    Returns:
        What was written. The provenance is in the file too: as safetensors metadata, or in
        ``meta``.

    Raises:
        UserError: If the source cannot be had or read, an argument is not allowed or ``out``
            exists.
    """
    out = Path(out).expanduser()
    _check_arguments(out, to, dtype)
    path = fetch(source, sha256)
    name = public_name(str(source))
    content = read_checkpoint(path)
    contents = sort_tensors(tensors_of(content, name, ema), name, prefix)
    sizes = infer_sizes(contents.backbone)
    if sizes is None:
        raise UserError(
            f'{name} holds no whole GC ViT backbone: give a file in the layout of NVIDIA, timm '
            'or mmgcvit, and the prefix of the backbone where it is a part of a larger model'
        )
    windows = _windows(window_size, len(sizes.depths)) or sizes.windows
    kept = Contents(contents.layout, contents.backbone, {} if backbone_only else contents.others)
    shapes = {
        table: ((2 * windows[int(table.split('.')[1])] - 1) ** 2,)
        for table in kept.backbone
        if table.endswith('.relative_position_bias_table')
    }
    kept.backbone = fit_tables(kept.backbone, shapes, [], name)
    state = {
        name: tensor.to(DTYPES[dtype] if dtype and tensor.is_floating_point() else tensor.dtype)
        for name, tensor in join_tensors(kept, to).items()
    }
    for tensor_name, tensor in state.items():
        if tensor.is_floating_point() and dtype:
            require_finite(f'{tensor_name} as {dtype}', tensor, name)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    meta = plain(meta) if isinstance(meta, Mapping) else {}
    known = meta.get('provenance', meta)
    before = (
        {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}
    )
    provenance = {
        'source': Path(name).name if '://' not in name else name,
        'source_sha256': digest_of(path),
        'source_layout': contents.layout,
        'layout': to,
        'arch': sizes.name or 'custom',
        'window_size': ' '.join(map(str, windows)),
        'averaged': str(ema or before.get('averaged') == 'True'),
        # of a file that was converted before, what was known of its source
        'licence': before.get('licence') or LAYOUTS[contents.layout].licence or 'of the source',
        'converted_by': f'mmgcvit {__version__}',
    }
    _write(out, state, meta, provenance)
    return Conversion(out, provenance, _groups(content, contents, kept, to, sizes.windows, windows))


def _check_arguments(out: Path, to: str, dtype: str | None) -> None:
    if to not in LAYOUTS:
        raise UserError(f'to={to!r} is not allowed: choose one of {", ".join(LAYOUTS)}')
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f'dtype={dtype!r} is not allowed: choose one of {", ".join(DTYPES)}')
    if out.suffix not in SUFFIXES:
        raise UserError(
            f'{out} has the ending {out.suffix!r}, which tells no format: {", ".join(SUFFIXES)}'
        )
    if out.exists():
        raise UserError(f'{out} exists and is not overwritten: remove it or give another name')


def _windows(window_size: Sequence[int] | None, stages: int) -> tuple[int, ...] | None:
    if window_size is None:
        return None
    if len(window_size) not in (1, stages) or not 1 <= min(window_size) <= max(window_size) <= 256:
        raise UserError(
            f'window_size={tuple(window_size)} is not allowed: give one side of 1 to 256 for '
            f'all stages or {stages} of them'
        )
    return tuple(window_size) * (stages if len(window_size) == 1 else 1)


def _write(
    out: Path, state: Mapping[str, Tensor], meta: dict, provenance: Mapping[str, str]
) -> None:
    # of its own memory each, as torch.save writes all of what a view is a part of
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if out.suffix == '.safetensors':
        try:
            from safetensors.torch import save
        except ImportError as error:
            raise UserError(
                f'{out} needs the package safetensors: pip install safetensors, or end the name '
                'in .pth'
            ) from error
        written = save(state, metadata={'format': 'pt', **provenance})
    else:
        file = io.BytesIO()
        torch.save({'meta': {**meta, 'provenance': dict(provenance)}, 'state_dict': state}, file)
        written = file.getvalue()
    write_atomically(out, written)


def _groups(
    content: object,
    contents: Contents,
    kept: Contents,
    to: str,
    before: Sequence[int],
    after: Sequence[int],
) -> list[Group]:
    groups = []
    for name, pattern in GROUPS:
        state = {n: t for n, t in contents.backbone.items() if re.match(pattern, n)}
        if state:
            left = join_tensors(Contents(contents.layout, state), to)
            became = f'kept, as {_common(left)}' if left else f'left out: {to} has no names for it'
            if 0 < len(left) < len(state):
                became += f'; {len(state) - len(left)} left out: {to} has no names for them'
            groups.append(_group(name, state, became))
    tables = {n: t for n, t in contents.backbone.items() if n.endswith('bias_table')}
    changes = (
        f'resized from windows {_row(before)} to {_row(after)}'
        if tuple(before) != tuple(after)
        else f'as they were, windows {_row(before)}'
    )
    groups.append(_group('of these: position biases', tables, changes))
    if contents.others:
        became = 'kept' if kept.others else 'left out: backbone only'
        groups.append(_group(f'others: {_common(contents.others)}', contents.others, became))
    if contents.dropped:
        groups.append(Group(_common(contents.dropped), len(contents.dropped), 0, 'left out'))
    if isinstance(content, Mapping):
        beside = [
            key
            for key, value in content.items()
            if not isinstance(value, Tensor) and key not in ('meta', *STATE_KEYS)
        ]
        if beside:
            names = ', '.join(map(str, beside[:6]))
            groups.append(Group(f'beside the weights: {names}', 0, 0, 'left out'))
    return groups


def _group(name: str, state: Mapping[str, Tensor], became: str) -> Group:
    return Group(name, len(state), sum(tensor.numel() for tensor in state.values()), became)


def _common(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    """Return what names have in common, as ``levels.0.*``, or the names if they are few."""
    names = list(names)
    if len(names) <= 2:
        return ', '.join(names)
    parts = [name.split('.') for name in names]
    depth = 0
    while all(len(each) > depth + 1 and each[depth] == parts[0][depth] for each in parts):
        depth += 1
    starts = sorted({'.'.join(each[: max(depth, 1)]) for each in parts})
    return ', '.join(f'{start}.*' for start in starts[:4]) + (', …' if len(starts) > 4 else '')


def _row(numbers: Sequence[int]) -> str:
    return ' '.join(map(str, numbers))
