"""Atomic file writes: a crash, a kill or a full disk never leaves a partial file."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file and its parent folders so that a partial file is never visible.

    When this returns, the file is on disk. If the power fails earlier, the previous file remains.

    Raises:
        OSError: If the file cannot be written. ``filename`` is set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, so that the rename is atomic
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        # may be left from an earlier process with this id; a symlink is removed, not followed
        partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)  # Unix; Windows
        with open(os.open(partial, flags, 0o666), 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:  # the error of a full disk has no filename
            error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def require_writable(path: Path, option: str) -> None:
    """Raise a UserError unless a file and its parent folders can be written.

    For files that a program writes after minutes of work.

    Args:
        path: The file.
        option: The option with which users choose it.
    """
    if path.is_dir():
        raise UserError(f'{option} {path} is a folder: pass the name of a file')
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(
            f'{option} {path} cannot be written, because {folder} is a file: pass another name'
        )
    if not os.access(folder, os.W_OK):
        raise UserError(
            f'{option} {path} cannot be written, because {folder} is not writable for this user: '
            'pass a file in another folder'
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same name, which replaces ``path`` at the end of the block.

    The block writes a file or a folder there, or nothing. If it raises, ``path`` stays as it was. A
    killed process leaves at most a hidden folder ``.NAME.partial-*`` next to ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, so that the rename is atomic
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.partial-', dir=path.parent) as folder:
        partial = Path(folder, path.name)
        yield partial
        if not partial.exists():
            return
        if path.is_dir():  # cannot be replaced in one step
            path.rename(Path(folder, 'old'))
        os.replace(partial, path)


def files_below(folder: Path, other_than: Path | None = None) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, in order of their names.

    Hidden files and folders are left out. Symlinks are followed, except to a folder that contains
    them.

    Args:
        folder: The folder.
        other_than: A folder that is left out with all its files.
    """
    but = {other_than.resolve()} if other_than is not None else set()
    for current, subfolders, names in os.walk(folder, followlinks=True):
        # a symlink to one of these would be followed without end
        open_folders = {folder.resolve(), Path(current).resolve(), *Path(current).resolve().parents}
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith('.') and Path(current, name).resolve() not in open_folders | but
        )
        for name in sorted(names):
            if not name.startswith('.'):
                yield Path(current, name)


def remove_partial_files(folder: Path, suffix: str) -> None:
    """Remove the partial files with this suffix that killed processes left in a folder.

    No other process may write such files to the folder at the same time.
    """
    for partial in folder.glob(f'.*{suffix}.*'):
        if partial.suffix[1:].isdigit():
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == 'nt':  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # some network file systems do not support this; the file itself is already synced
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
