"""Writing files so that a crash, a kill or a full disk leaves no half of one."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file, parents included, so that at no moment a part of it can be seen.

    When this returns the file is on the disk: a power failure keeps it, or the one before it.

    Raises:
        OSError: If it cannot be written; the file's name is in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for the rename to be one step.
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        # what an earlier process of this number left; where the name is a link, it is not followed
        partial.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)  # Unix; Windows
        with open(os.open(partial, flags, 0o666), 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None:  # a full disk tells no name
            error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def remove_partial_files(folder: Path, suffix: str) -> None:
    """Remove what killed processes left of files with this suffix in a folder.

    Only for a folder that no other process writes such files to.
    """
    for partial in folder.glob(f'.*{suffix}.*'):
        if partial.suffix[1:].isdigit():
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == 'nt':  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # some network file systems refuse to; the file itself is synced already
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
