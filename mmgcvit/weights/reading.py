"""Reading weights files without executing anything that they hold."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from mmengine.runner import CheckpointLoader

from ..errors import UserError
from . import safe_pickle
from .sources import fetch, is_web_page

# whether torch.load(weights_only=True) accepts further classes: torch 2.5 and later
TORCH_TAKES_GLOBALS = hasattr(torch.serialization, 'safe_globals')


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read what torch.save or safetensors wrote, running no code of the file.

    Tensors, NumPy arrays and plain Python values are read as they are. Other classes that NVIDIA's
    and mmengine's files name become inert stand-ins, from whose plain values mmengine's
    HistoryBuffers are built. Any other class or function in the file is refused, except those that
    the program has passed to ``torch.serialization.add_safe_globals`` (torch 2.5 and later), which
    is the way to read classes of your own.

    Args:
        path: Local file. Its content, not its name, determines the format.
        map_location: As of :func:`torch.load`.

    Returns:
        What was saved. A safetensors file gives its tensors as ``state_dict`` and its metadata as
        ``meta``.

    Raises:
        UserError: If the file cannot be read without running code, or is broken.
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
            f'{path} was not loaded, because it does what could run code, or is damaged '
            f'({_reason(error)}): get it again, or save its tensors alone (a dict of names and '
            'tensors) with torch.save, from a program that you trust with the file'
        ) from error
    # a broken file can make the libraries raise anything
    except Exception as error:
        raise UserError(
            f'{path} cannot be read as a weights file ({type(error).__name__}: {_reason(error)}): '
            'it may be truncated or damaged; compare its size with the original and get it again'
        ) from error


def _reason(error: Exception) -> str:
    # torch's own advice is to run the code
    text = str(error).rpartition('WeightsUnpickler error: ')[2].strip()
    return ' '.join(text.split('\n')[0].split())[:300]


def _kind_of(path: Path) -> str:
    """Return a file's format by its first bytes: zip (of torch.save), safetensors or pickle."""
    try:
        with open(path, 'rb') as file:
            beginning = file.read(16)
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    if not beginning:
        raise UserError(f'{path} is empty: get the file again')
    if beginning.startswith(b'PK'):
        return 'zip'
    # the length of a JSON text and its first character
    if beginning[8:9] == b'{':
        return 'safetensors'
    # the protocol of a pickle; torch before 1.6 wrote several in a row, before 0.1.2 in a tar file
    if beginning[0] == pickle.PROTO[0] and not tarfile.is_tarfile(path):
        return 'pickle'
    if is_web_page(path):
        raise UserError(
            f'{path} is a web page, not a weights file: its address has moved or asks for a login; '
            'remove it and get the file itself'
        )
    raise UserError(
        f'{path} is not a weights file: it begins with {beginning!r}; give what torch.save or '
        'safetensors has written'
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
    """Check what torch.load does not: all checksums, and that it reads the entries checked here."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        program = any(name.endswith('/constants.pkl') for name in names)
        if not program and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(
                f'{path} is a compressed zip archive, which torch.save does not write: unpack the '
                'weights file in it'
            )
        with open(path, 'rb') as file:
            reader = torch._C.PyTorchFileReader(file)
            records = reader.get_all_records()
            if 'constants.pkl' in records:
                raise UserError(
                    f'{path} is a TorchScript program, which is not run: save its state_dict() '
                    'with torch.save'
                )
            # an archive can be crafted so that two programs see two tables of contents
            folder = names[0].partition('/')[0]
            seen = {f'{folder}/{name}': reader.get_record_offset(name) for name in records}
            same = {entry.filename: _offset(file, entry) for entry in entries} == seen
        if not same or len(names) != len(seen):
            raise UserError(f'{path} is damaged: its tables of contents do not agree; get it again')
        damaged = archive.testzip()
    if damaged:
        raise UserError(
            f'{path} is damaged: {damaged} in it has another checksum than was written; get it '
            'again'
        )


def _offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Return the offset at which the content of an archive's entry begins."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
    return entry.header_offset + 30 + name + extra


def _check_names(path: Path, kind: str) -> None:
    """Go through the pickles of a file without building anything.

    Raises:
        UserError: If they name classes or functions that are not allowed.
    """
    refused: list[str] = []
    if kind == 'zip':
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition('/')[0]
            refused += safe_pickle.inspect(io.BytesIO(archive.read(f'{folder}/data.pkl')))
    else:
        with open(path, 'rb') as file:
            # a magic number, the protocol, the machine, the content, the keys of its tensors
            for _ in range(5):
                refused += safe_pickle.inspect(file)
    if refused:
        raise UserError(
            f'{path} was not loaded, because that could run code: it names '
            f'{", ".join(sorted(set(refused))[:10])[:500]}. Save the tensors alone (a dict of '
            'names and tensors) with torch.save, from a program that you trust with the file'
            + (
                '; or, if these classes are your own, pass them to '
                'torch.serialization.add_safe_globals in a module of your custom_imports'
                if TORCH_TAKES_GLOBALS
                else ''
            )
        )


def _load(path: Path, map_location: Any) -> Any:
    # opened here, because torch would take the format from the file's name
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
        # Runner.resume would execute this text as a Python config, for a key long out of use
        checkpoint['meta'].pop('config', None)
    return checkpoint


def register_checkpoint_loaders() -> None:
    """Make mmengine read checkpoints safely, process-wide, from all sources of :func:`fetch`.

    Only this package's tools call it: importing the package changes nothing.
    """
    CheckpointLoader.register_scheme(
        prefixes=('', 'file://', 'http://', 'https://', 'hf://', 'timm://'),
        loader=_load_for_mmengine,
        force=True,
    )
