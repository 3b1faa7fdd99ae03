"""Reading weights files without executing any code in them."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import UserError
from . import safe_pickle
from .sources import fetch, is_web_page

# whether torch.load(weights_only=True) accepts additional classes: torch 2.5 and later
TORCH_TAKES_GLOBALS = hasattr(torch.serialization, 'safe_globals')


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read a file written by torch.save or safetensors without executing any code in it.

    Tensors, NumPy arrays and plain Python values are read unchanged. Inert stand-ins replace the
    other classes that files of NVIDIA and mmengine refer to, and mmengine's HistoryBuffers are
    built from the plain values of their stand-ins. Every other class or function in the file is
    rejected. To read custom classes, pass them to ``torch.serialization.add_safe_globals`` (torch
    2.5 and later).

    Args:
        path: Local file. Its content, not its name, determines the format.
        map_location: See :func:`torch.load`.

    Returns:
        The saved object. For a safetensors file, a dict with the tensors as ``state_dict`` and the
        metadata as ``meta``.

    Raises:
        UserError: If the file cannot be read without executing code, or is damaged.
    """
    path = Path(path)
    kind = _kind_of(path)
    try:
        if kind == 'safetensors':
            return _read_safetensors(path, map_location)
        if kind == 'zip':
            _check_archive(path)
        _check_names(path, kind)
        return safe_pickle.revive(_load(path, map_location))
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} was not loaded because it could execute code or is damaged '
            f'({_reason(error)}): download it again, or save only its tensors (a dict of names '
            'and tensors) with torch.save, in a program that you trust with the file'
        ) from error
    # the libraries can raise any exception for a damaged file
    except Exception as error:
        raise UserError(
            f'{path} cannot be read as a weights file ({type(error).__name__}: {_reason(error)}): '
            'it may be truncated or damaged; compare its size with the original and download it '
            'again'
        ) from error


def _reason(error: Exception) -> str:
    # omit torch's advice, which is to execute the code
    text = str(error).rpartition('WeightsUnpickler error: ')[2].strip()
    return ' '.join(text.split('\n')[0].split())[:300]


def _kind_of(path: Path) -> str:
    """Return the format of a file from its first bytes: zip (torch.save), safetensors or pickle."""
    try:
        with open(path, 'rb') as file:
            beginning = file.read(16)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    if not beginning:
        raise UserError(f'{path} is empty: download it again')
    if beginning.startswith(b'PK'):
        return 'zip'
    # safetensors: the length of a JSON text, then its first character
    if beginning[8:9] == b'{':
        return 'safetensors'
    # torch before 1.6 wrote several pickles in a row, torch before 0.1.2 a tar file
    if beginning[0] == pickle.PROTO[0] and not tarfile.is_tarfile(path):
        return 'pickle'
    if is_web_page(path):
        raise UserError(
            f'{path} is a web page, not a weights file: the URL moved or needs a login; delete it '
            'and download the actual file'
        )
    raise UserError(
        f'{path} is not a weights file: it begins with {beginning!r}; expected a file written '
        'by torch.save or safetensors'
    )


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError(f'{path} needs the package safetensors: pip install safetensors') from error
    device = str(map_location) if isinstance(map_location, str | torch.device) else 'cpu'
    with safe_open(path, 'pt', device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {'meta': dict(file.metadata() or {}), 'state_dict': tensors}


def _check_archive(path: Path) -> None:
    """Check all checksums, and that torch.load will read the same entries as this function."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        program = any(name.endswith('/constants.pkl') for name in names)
        if not program and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(
                f'{path} is a compressed zip archive, which torch.save does not write: extract the '
                'weights file from it'
            )
        with open(path, 'rb') as file:
            reader = torch._C.PyTorchFileReader(file)
            records = reader.get_all_records()
            if 'constants.pkl' in records:
                raise UserError(
                    f'{path} is a TorchScript program, which is not executed: save its '
                    'state_dict() with torch.save'
                )
            # a crafted archive can show different tables of contents to different readers
            folder = names[0].partition('/')[0]
            seen = {f'{folder}/{name}': reader.get_record_offset(name) for name in records}
            same = {entry.filename: _offset(file, entry) for entry in entries} == seen
        if not same or len(names) != len(seen):
            raise UserError(
                f'{path} is damaged: its tables of contents do not agree; download it again'
            )
        damaged = archive.testzip()
    if damaged:
        raise UserError(f'{path} is damaged: checksum mismatch in {damaged}; download it again')


def _offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Return the offset of the content of an entry in an archive."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
    return entry.header_offset + 30 + name + extra


def _check_names(path: Path, kind: str) -> None:
    """Inspect the pickles in a file without building any object.

    Raises:
        UserError: If they refer to classes or functions that are not allowed.
    """
    refused: list[str] = []
    if kind == 'zip':
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition('/')[0]
            refused += safe_pickle.inspect(io.BytesIO(archive.read(f'{folder}/data.pkl')))
    else:
        with open(path, 'rb') as file:
            # pickles of the old format: magic number, protocol, machine, content, tensor keys
            for _ in range(5):
                refused += safe_pickle.inspect(file)
    if refused:
        raise UserError(
            f'{path} was not loaded because it could execute code: it refers to '
            f'{", ".join(sorted(set(refused))[:10])[:500]}. Save only the tensors (a dict of names '
            'and tensors) with torch.save, in a program that you trust with the file'
            + (
                '; or, if these are your own classes, pass them to '
                'torch.serialization.add_safe_globals in a module of your custom_imports'
                if TORCH_TAKES_GLOBALS
                else ''
            )
        )


def _load(path: Path, map_location: Any) -> Any:
    # a file object, because torch.load would infer the format from a file name
    with open(path, 'rb') as file:
        if TORCH_TAKES_GLOBALS:
            with torch.serialization.safe_globals(list(safe_pickle.stand_ins().values())):
                return torch.load(file, map_location=map_location, weights_only=True)
        return torch.load(
            file, map_location=map_location, pickle_module=safe_pickle, weights_only=False
        )


def _load_for_mmengine(filename: str, map_location: Any = None) -> Any:
    checkpoint = read_checkpoint(fetch(filename), map_location)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        # Runner.resume would execute this text as a Python config, to check an obsolete key
        checkpoint['meta'].pop('config', None)
    return checkpoint


def register_checkpoint_loaders() -> None:
    """Make mmengine read checkpoints with :func:`read_checkpoint`, process-wide.

    This applies to all sources of :func:`fetch`. Only this package's tools call this function:
    importing the package does not change mmengine.
    """
    # imported here, because reading does not need mmengine
    from mmengine.runner import CheckpointLoader

    CheckpointLoader.register_scheme(
        prefixes=('', 'file://', 'http://', 'https://', 'hf://', 'timm://'),
        loader=_load_for_mmengine,
        force=True,
    )
