"""Reading weights files without executing anything that they hold."""

import os
import pickle
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from .errors import WeightsError
from .sources import is_web_page
from .stand_ins import allowed_globals, modern_name, revive

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
        WeightsError: If the file cannot be read without running code, or is broken.
    """
    path = Path(path)
    kind = _kind_of(path)
    try:
        if kind == 'safetensors':
            return _read_safetensors(path, map_location)
        if kind == 'zip':
            _check_archive(path)
        return revive(_load(path, map_location))
    except (WeightsError, KeyboardInterrupt):
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, error)) from error
    # whatever a broken file makes the libraries do
    except Exception as error:
        reason = ' '.join(str(error).split())[:300]
        raise WeightsError(
            f'{path} cannot be read as a weights file ({type(error).__name__}: {reason}): it may '
            'be cut short or damaged; compare its size with the original and get it again'
        ) from error


def _kind_of(path: Path) -> str:
    """Return what a file is by its first bytes: zip (of torch.save), safetensors or pickle."""
    try:
        with open(path, 'rb') as file:
            beginning = file.read(16)
    except OSError as error:
        raise WeightsError(f'{path} cannot be read ({error.strerror})') from error
    if not beginning:
        raise WeightsError(f'{path} is empty: get the file again')
    if beginning.startswith(b'PK'):
        return 'zip'
    # the length of a JSON text and its first character
    if beginning[8:9] == b'{':
        return 'safetensors'
    # the protocol of a pickle; torch before 1.6 wrote several in a row, and before 0.1.2 in a tar
    if beginning[0] == pickle.PROTO[0] and not tarfile.is_tarfile(path):
        return 'pickle'
    if is_web_page(path):
        raise WeightsError(
            f'{path} is a web page, not a weights file: its address has moved or asks for a login; '
            'remove it and get the file itself'
        )
    raise WeightsError(
        f'{path} is no weights file: it begins with {beginning!r}; give what torch.save or '
        'safetensors has written'
    )


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise WeightsError(
            f'{path} needs the package safetensors: pip install safetensors'
        ) from error
    device = str(map_location) if isinstance(map_location, str | torch.device) else 'cpu'
    with safe_open(path, 'pt', device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {'meta': dict(file.metadata() or {}), 'state_dict': tensors}


def _check_archive(path: Path) -> None:
    """Check what torch.load does not: that no byte has changed, and that there is no program."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise WeightsError(f'{path} is damaged: it has two entries of one name; get it again')
        if 'constants.pkl' in {Path(name).name for name in names}:
            raise WeightsError(
                f'{path} is a TorchScript program, which is not run: save its state_dict() with '
                'torch.save'
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise WeightsError(
                f'{path} is a compressed zip archive, which torch.save does not write: unpack the '
                'weights file in it'
            )
        damaged = archive.testzip()
    if damaged:
        raise WeightsError(
            f'{path} is damaged: {damaged} in it has another checksum than was written; get it '
            'again'
        )


def _load(path: Path, map_location: Any) -> Any:
    # a file without its name, of which torch would take its format
    with open(path, 'rb') as file:
        if TORCH_TAKES_GLOBALS:
            with torch.serialization.safe_globals(list(allowed_globals().values())):
                return torch.load(file, map_location=map_location, weights_only=True)
        from . import restricted_pickle

        return torch.load(
            file, map_location=map_location, pickle_module=restricted_pickle, weights_only=False
        )


def _refusal(path: Path, error: Exception) -> str:
    wanted = sorted(set(_globals_in(path)) - set(_known_globals()))
    if not wanted:
        # torch's text recommends what would run the code
        reason = (
            re.sub(r'(?s).*WeightsUnpickler error: ', '', str(error)).strip().split('\n')[0][:300]
        )
        return (
            f'{path} was not loaded, because it does what could run code, or is damaged '
            f'({reason}): get it again, or save its tensors alone (a dict of names and tensors) '
            'with torch.save, from a program that you trust with the file'
        )
    return (
        f'{path} was not loaded, because that could run code: it names {", ".join(wanted[:10])}. '
        'Save the tensors alone (a dict of names and tensors) with torch.save, from a program that '
        'you trust with the file'
        + (
            '; or, if these classes are your own, name them to '
            'torch.serialization.add_safe_globals in a module of your custom_imports'
            if TORCH_TAKES_GLOBALS
            else ''
        )
    )


def _known_globals() -> Iterator[str]:
    """Yield the names that are allowed, by torch and by us."""
    yield from allowed_globals()
    yield from torch._weights_only_unpickler._get_allowed_globals()
    if TORCH_TAKES_GLOBALS:
        for each in torch.serialization.get_safe_globals():
            target, *name = each if isinstance(each, tuple) else (each,)
            yield name[0] if name else f'{target.__module__}.{target.__qualname__}'


def _globals_in(path: Path) -> Iterator[str]:
    """Yield the classes and functions that the pickles in a file name, as far as it can be read."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith('.pkl'):
                        with archive.open(name) as file:
                            yield from _globals_of(file)
        else:
            with open(path, 'rb') as file:
                # a magic number, the protocol, the machine, then the content
                for _ in range(4):
                    yield from _globals_of(file)
    except Exception:
        # it is refused in any case
        return


def _globals_of(file: IO[bytes]) -> Iterator[str]:
    """Yield the names in one pickle."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ('GLOBAL', 'INST'):
            yield modern_name(*argument.split(' ', 1))
        elif opcode.name == 'STACK_GLOBAL' and len(texts) >= 2:
            yield '.'.join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)
