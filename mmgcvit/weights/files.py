"""Weights files: from a path or URL, read without executing anything that they hold."""

import fcntl
import functools
import os
import pickle
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from .errors import WeightsError

TIMEOUT = 10  # seconds that a server may be silent


def fetch(source: str | os.PathLike) -> Path:
    """Return the local file that a path, ``file://`` or ``http(s)://`` URL stands for.

    A URL is downloaded once, to torch hub's cache; several processes that ask at the same time
    wait for one download.

    Args:
        source: Path (``~`` is expanded) or URL.

    Raises:
        WeightsError: If there is no such file, the scheme is not known or the download fails.
    """
    source = os.fspath(source)
    scheme = match[1] if (match := re.match(r'(\w+)://', source)) else ''
    if scheme in ('http', 'https'):
        return _download(source)
    if scheme not in ('', 'file'):
        raise WeightsError(
            f'checkpoint={source!r} is not allowed: {scheme}:// is not known; give a path, a '
            'file:// or a http(s):// URL'
        )
    path = Path(unquote(urlparse(source).path) if scheme else source).expanduser()
    if not path.is_file():
        found = 'is a folder' if path.is_dir() else 'does not exist'
        raise WeightsError(f'{path} {found}: give the path of a weights file, or a URL')
    return path


def _download(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(url).path).name
    if path.is_file():
        print_log(f'weights of {url} are taken from {path}', logger='current')
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f'{path.name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # another process may have been faster
        if not path.is_file():
            print_log(f'downloading {url} to {path}', logger='current')
            unfinished = path.with_name(f'{path.name}.part')
            try:
                size = _content_length(url)
                with _impatient():
                    torch.hub.download_url_to_file(url, str(unfinished))
                # a connection that is cut looks like a file's end
                found = unfinished.stat().st_size
                if size not in (None, found):
                    raise OSError(f'{found} of {size} bytes came')
                unfinished.replace(path)
            except (OSError, ValueError, RuntimeError) as error:
                raise WeightsError(
                    f'{url} could not be downloaded ({error}): put the file at {path} by hand, or '
                    'give the path of a copy as checkpoint'
                ) from error
    return path


def _content_length(url: str) -> int | None:
    """Return how many bytes a URL has, None where the server does not say."""
    try:
        with urlopen(Request(url, method='HEAD'), timeout=TIMEOUT) as response:
            return int(response.headers['Content-Length'])
    except (HTTPError, TypeError, ValueError):
        return None


@contextmanager
def _impatient() -> Iterator[None]:
    """Limit the time that new connections may stay silent, as torch.hub's have no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_checkpoint(path: str | os.PathLike, map_location: Any = 'cpu') -> Any:
    """Read what torch.save wrote, running no code of the file.

    Tensors, NumPy arrays and plain Python values are read as they are. Classes that NVIDIA's
    and mmengine's files name besides become inert stand-ins, mmengine's HistoryBuffers are then
    built anew from their plain values. Any other class or function in the file is refused.

    Args:
        path: Local file.
        map_location: As of :func:`torch.load`.

    Raises:
        WeightsError: If the file cannot be read without running code, or is broken.
    """
    try:
        with _stand_ins():
            content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f'{path} was not loaded, because that could run code or the file is no weights file: '
            f'{_refused_global(error) or error}. {_remedy()}'
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise WeightsError(
            f'{path} cannot be read as a weights file ({type(error).__name__}: {error}): it may be '
            'cut short; compare its size with the original and get it again'
        ) from error
    return _revive(content)


def _remedy() -> str:
    if not hasattr(torch.serialization, 'safe_globals'):
        return (
            f'torch {torch.__version__} reads files of tensors and plain values only: files that '
            "name other classes, as NVIDIA's and training checkpoints do, need torch 2.5 or later"
        )
    return (
        'Save the tensors alone (a dict of names and tensors) with torch.save, from a program '
        'that you trust with the file'
    )


def _refused_global(error: Exception) -> str | None:
    match = re.search(r'GLOBAL (\S+)', str(error))
    return f'it names {match[1]}' if match else None


def _stand_in(path: str) -> type:
    """Make an inert class that goes by the name of another: it only keeps what it is given."""
    module, name = path.rsplit('.', 1)
    return type(name, (), {'__module__': module})


def _renamed(function: Callable, path: str) -> Callable:
    """Make a function that goes by another name than the one that it calls."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__ = path.rsplit('.', 1)
    call.__qualname__ = call.__name__
    return call


# mmengine's own class calls functions that its pickled state names: crafted files run code so
_History = _stand_in('mmengine.logging.history_buffer.HistoryBuffer')


@functools.cache
def _allowed_globals() -> list[Callable]:
    """Return what torch.load may meet besides tensors and plain values, by the files' names."""
    arrays, scalars = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    return [
        _History,
        _stand_in('argparse.Namespace'),
        # getattr reaches any code from any class; the files name it for what is rebuilt anyway
        _renamed(lambda *_: None, 'builtins.getattr'),
        # the same two functions go by NumPy 1's and NumPy 2's names
        *(
            _renamed(function, f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for name, function in (('_reconstruct', arrays), ('scalar', scalars))
        ),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in np.typecodes['All']},
    ]


def _stand_ins() -> AbstractContextManager:
    """Let torch.load meet the globals above; torch before 2.5 takes none besides its own."""
    if hasattr(torch.serialization, 'safe_globals'):
        return torch.serialization.safe_globals(_allowed_globals())
    return nullcontext()


def _revive(value: Any) -> Any:
    """Return ``value`` with real HistoryBuffers, built from plain numbers, for the stand-ins."""
    if isinstance(value, _History):
        state = vars(value)
        log = np.asarray(state.get('_log_history', ()), dtype=float)
        count = np.asarray(state.get('_count_history', ()), dtype=float)
        return HistoryBuffer(log, count, int(state.get('max_length', 1_000_000)))
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _revive(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_revive(item) for item in value)
    return value


def load_from_safe_file(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint for mmengine's Runner; as :func:`read_checkpoint`, from a path or URL."""
    checkpoint = read_checkpoint(fetch(filename), map_location)
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        # Runner.resume would execute this text as a Python config, for a key long out of use
        checkpoint['meta'].pop('config', None)
    return checkpoint


def register_checkpoint_loaders() -> None:
    """Make mmengine read checkpoints from paths, file:// and http(s):// URLs safely, process-wide.

    Called by this package's tools only: importing the package changes nothing.
    """
    CheckpointLoader.register_scheme(
        prefixes=('', 'file://', 'http://', 'https://'), loader=load_from_safe_file, force=True
    )
