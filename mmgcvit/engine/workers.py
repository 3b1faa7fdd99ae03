"""Signals to data workers, and their connection to the training."""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from ..errors import UserError

# Linux allows 107 bytes for the path of a socket, and Python adds /pymp-…/listener-… to the folder
LONGEST_FOLDER = 107 - len('/pymp-12345678/listener-12345678')


def require_short_temporary_folder() -> None:
    """Check that data workers can send their batches: otherwise, training waits for them forever.

    Raises:
        UserError: If the path of the temporary folder is too long for a socket in it.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        raise UserError(
            f'the temporary folder {folder} has a path of {len(os.fsencode(folder))} bytes, and '
            f'data workers need one of at most {LONGEST_FOLDER}: set TMPDIR to another folder'
        )


@contextlib.contextmanager
def sigterm_blocked() -> Iterator[None]:
    """Delay SIGTERM to this thread, and to the workers that it starts until they are ready."""
    if not hasattr(signal, 'pthread_sigmask'):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_sigterm_of_others() -> None:
    """Make this data worker ignore SIGTERM, unless its training process sends it.

    Schedulers send SIGTERM to every process of a job. Without this, the workers would end, and the
    training would fail before it saves a checkpoint. torch uses the same signal to end a worker
    that does not respond.
    """
    if not hasattr(signal, 'sigtimedwait'):  # not on macOS and Windows
        return
    # blocked here and in the threads that start later, so that only the thread below receives it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    # The worker's main thread may never notice that its parent was killed: it waits to send a batch
    # to a pipe that the other workers keep open.
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 5)  # seconds
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


def sigterm_received() -> bool:
    """Return whether StopOnSigtermHook has handled a SIGTERM in this process."""
    hook = getattr(signal.getsignal(signal.SIGTERM), '__self__', None)
    return getattr(hook, 'received', False)


def gives_way(handler: Any) -> bool:
    """Return whether a handler of a signal is only for the time until another one is installed.

    tools/_signals.py, which cannot import this package, marks its handler by this attribute.
    """
    return getattr(handler, 'gives_way', False)
