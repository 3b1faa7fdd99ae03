"""Jobs, and the process that runs them one after the other."""

import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ...engine import prepare_child
from ...errors import UserError, describe, one_line
from ...progress import duration

Row = dict[str, Any]  # column → text, number or None


@dataclass(frozen=True)
class Job:
    """A measurement.

    Attributes:
        what: What is measured.
        function: Function of a module. It yields its rows so far, as often as there are more.
        arguments: Its arguments.
        fresh: Whether it needs a process of its own.
    """

    what: str
    function: Callable[..., Iterator[list[Row]]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False


class Worker:
    """A process that runs jobs. It is replaced if one of them fails, because an error may leave the
    GPU unusable for the process.

    Args:
        log: File to which the process prints.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, job: Job, seconds: float) -> tuple[list[Row], str]:
        """Run a job. Return its rows, and why they are incomplete, or ''.

        Args:
            job: The job.
            seconds: The process is killed after this time.
        """
        deadline = time.monotonic() + seconds
        if job.fresh:
            self.end()
        pipe = self._connect()
        rows: list[Row] = []
        reason: str | None = None
        try:
            pipe.send(job)
            while reason is None:
                if not pipe.poll(max(0, deadline - time.monotonic())):
                    reason = f'not finished within {duration(seconds)}'
                    self.end()
                    break
                result = pipe.recv()
                if isinstance(result, list):
                    rows = result
                else:
                    reason, usable = result
                    if job.fresh or not usable:
                        self.end()
        except (EOFError, OSError):
            reason = self._ending()
        except BaseException:  # such as Ctrl-C
            self.end()
            raise
        return rows, reason or ''

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _connect(self) -> Connection:
        if self._process is None or self._pipe is None:
            context = get_context('spawn')
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self._log))
            self._process.start()
            other.close()  # so that the pipe ends with the process
        return self._pipe

    def _ending(self) -> str:
        """Return how the process has ended."""
        assert self._process is not None  # it was running the job
        self._process.join(30)
        code = self._process.exitcode
        self.end()
        if code is None or code >= 0:
            return f'its process ended with exit code {code}'
        cause = ', most likely because of too little memory' if code == -signal.SIGKILL else ''
        return f'its process was ended by {signal.Signals(-code).name}{cause}'


def _serve(pipe: Connection, log: Path) -> None:
    """Run the jobs from a pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, to which the first process reacts
    prepare_child()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        print(f'\n== {job.what}', flush=True)
        pipe.send(_answer(job, pipe))


def _answer(job: Job, pipe: Connection) -> tuple[str, bool]:
    """Run a job. Return why its rows are incomplete, and whether the process can go on."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        for rows in job.function(**job.arguments):
            pipe.send(rows)
    except UserError as error:
        return one_line(error), True
    except Exception as error:
        traceback.print_exc()
        return describe(error), False
    return '', True
