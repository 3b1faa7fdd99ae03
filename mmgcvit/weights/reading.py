"""Reading weights files without executing anything that they hold."""

import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import UserError
from . import restricted_pickle
from .restricted_pickle import inspect
from .sources import is_web_page
from .stand_ins import allowed_globals, revive

# torch.load takes names of other classes than its own from here on, see `restricted_pickle`
TORCH_TAKES_GLOBALS = hasattr(torch.serialization, 'safe_globals')


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read what torch.save or safetensors wrote, running no code of the file.

    Tensors, NumPy arrays and plain Python values are read as they are. Classes that NVIDIA's
    and mmengine's files name besides become inert stand-ins, mmengine's HistoryBuffers are then
    built anew from their plain values. Any other class or function in the file is refused, but for
    those that the program has given to ``torch.serialization.add_safe_globals`` (torch 2.5 and
    later): that is the way to read classes of your own.

    Args:
        path: Local file; what it is is told from its content, not from its name.
        map_location: As of :func:`torch.load`.

    Returns:
        What was saved. Of a safetensors file, its tensors as ``state_dict`` and its metadata as
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
        _inspect(path, kind)
        return revive(_load(path, map_location))
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f'{path} was not loaded, because it does what could run code, or is damaged '
            f'({_reason(error)}): get it again, or save its tensors alone (a dict of names and '
            'tensors) with torch.save, from a program that you trust with the file'
        ) from error
    # whatever a broken file makes the libraries do
    except Exception as error:
        raise UserError(
            f'{path} cannot be read as a weights file ({type(error).__name__}: {_reason(error)}): '
            'it may be cut short or damaged; compare its size with the original and get it again'
        ) from error


def _reason(error: Exception) -> str:
    # torch's text recommends what would run the code
    text = str(error).rpartition('WeightsUnpickler error: ')[2].strip()
    return ' '.join(text.split('\n')[0].split())[:300]


def _kind_of(path: Path) -> str:
    """Return what a file is by its first bytes: zip (of torch.save), safetensors or pickle."""
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
    # the protocol of a pickle; torch before 1.6 wrote several in a row, and before 0.1.2 in a tar
    if beginning[0] == pickle.PROTO[0] and not tarfile.is_tarfile(path):
        return 'pickle'
    if is_web_page(path):
        raise UserError(
            f'{path} is a web page, not a weights file: its address has moved or asks for a login; '
            'remove it and get the file itself'
        )
    raise UserError(
        f'{path} is no weights file: it begins with {beginning!r}; give what torch.save or '
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
    """Check what torch.load does not: every byte, and that it reads what is checked here."""
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
            # an archive can be made so that two programs see two tables of contents in it
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
    """Return where the content of an archive's entry begins."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack('<HH', file.read(4))
    return entry.header_offset + 30 + name + extra


def _inspect(path: Path, kind: str) -> None:
    """Go through the pickles of a file, calling nothing.

    Raises:
        UserError: If they name classes or functions that are not allowed.
    """
    refused: list[str] = []
    if kind == 'zip':
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition('/')[0]
            with archive.open(f'{folder}/data.pkl') as file:
                refused += inspect(file)
    else:
        with open(path, 'rb') as file:
            # a magic number, the protocol, the machine, the content, the keys of its tensors
            for _ in range(5):
                refused += inspect(file)
    if refused:
        raise UserError(
            f'{path} was not loaded, because that could run code: it names '
            f'{", ".join(sorted(set(refused))[:10])[:500]}. Save the tensors alone (a dict of '
            'names and tensors) with torch.save, from a program that you trust with the file'
            + (
                '; or, if these classes are your own, name them to '
                'torch.serialization.add_safe_globals in a module of your custom_imports'
                if TORCH_TAKES_GLOBALS
                else ''
            )
        )


def _load(path: Path, map_location: Any) -> Any:
    # a file without its name, of which torch would take its format
    with open(path, 'rb') as file:
        if TORCH_TAKES_GLOBALS:
            with torch.serialization.safe_globals(list(allowed_globals().values())):
                return torch.load(file, map_location=map_location, weights_only=True)
        return torch.load(
            file, map_location=map_location, pickle_module=restricted_pickle, weights_only=False
        )
