"""Messages between the processes of a run, over the key-value store that connects them.

A collective operation waits for all processes and does not know which one is missing. The store
answers at once, so that errors can name the processes that failed or did not arrive.
"""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import FlexibleRunner, Runner

from ..errors import UserError, one_line

LATE = 30  # seconds after which a line shows which processes are awaited
MORE_TIME = 30  # seconds for the first process to report that others did not arrive
# Seconds in which other processes with the same error, or the same timeout, are counted.
SAME_ERROR, SAME_TIMEOUT = 1, 5
# what gloo, NCCL and the store raise in one process because another one has ended
OTHER_ENDED = re.compile(
    'closed by peer|reset by peer|remote process exited|Broken pipe|Failed to recv, got 0 bytes'
)
TIMED_OUT = re.compile(r'Timed out waiting|Application timeout|wait timeout|Socket Timeout')


class OtherFailed(UserError):
    """Another process, which reports it, has failed while this one waited for it."""


class Disagreement(UserError):
    """An error that all processes raise."""


class Exchange:
    """The connection of this process to the others of its run.

    Args:
        store: Store that all processes of the run can reach.
        rank: Rank of this process.
        size: Number of processes.
        timeout: Seconds to wait for other processes.

    Attributes:
        summary: What the first process reports of all of them, once they agree.
    """

    current: 'Exchange | None' = None

    def __init__(
        self, store: torch.distributed.Store, rank: int, size: int, timeout: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self.summary = ''
        self._store = store
        self._numbers = count()

    def introduce(self, host: str) -> None:
        """Publish where this process runs.

        Raises:
            UserError: If another process has the same rank.
        """
        key = f'process/{self.rank}'
        if other := self._read(key):
            raise UserError(
                f'two processes have rank {self.rank}, on {other["host"]} and {host}: start each '
                'node with its own NODE_RANK, from 0 to NNODES - 1'
            )
        self._publish(key, {'host': host, 'pid': os.getpid()})

    def agree(
        self,
        record: dict[str, Any],
        judge: Callable[[Sequence[dict[str, Any]]], str | None],
        what: str,
        remedy: str = '',
    ) -> None:
        """Let the first process judge the records of all processes.

        Args:
            record: What this process has found, as plain data.
            judge: Returns an error of the records, which are sorted by rank, or None. It runs only
                in the first process.
            what: What a process has to do, for example 'load the data'.
            remedy: What the user can do if a process does not.

        Raises:
            Disagreement: In all processes, if there is an error or a process does not arrive in
                time.
        """
        name = f'agreement/{next(self._numbers)}'
        self._publish(f'{name}/{self.rank}', record)
        if self.rank:
            if self._missing([f'{name}/verdict'], self.timeout + MORE_TIME, what):
                raise Disagreement(self._late([0], what, remedy))
            error = self._read(f'{name}/verdict')
        else:
            keys = [f'{name}/{rank}' for rank in range(self.size)]
            if missing := self._missing(keys, self.timeout, what):
                error = self._late(missing, what, remedy)
            else:
                error = judge([self._read(key) for key in keys])
            self._publish(f'{name}/verdict', error or '')
        if error:
            raise Disagreement(error)

    def report(self, error: Exception, line: str, whole: str) -> tuple[str, bool]:
        """Find out whether this process has to print its error.

        Args:
            error: An exception that ends this process.
            line: Its text on one line.
            whole: What a single process would print.

        Returns:
            What to print, and whether another process reports the cause. Print it then only if this
            process is still there after some time, because the other one is on another node.
        """
        if isinstance(error, OtherFailed):
            return whole, True
        if is_of_connection(error, OTHER_ENDED):
            return (
                f'error: process {self.rank} has lost the connection to another process '
                f'({one_line(error, 150)}): the cause is the first error of the other processes, '
                'in the output of their nodes'
            ), True
        late = is_of_connection(error, TIMED_OUT)
        if late:
            limit = f'within {self.timeout:g} seconds (env_cfg.dist_cfg.timeout)'
            line = f'{operation(error)} did not finish {limit}'
            whole = f'error: {line}'
        try:
            self._publish(f'failed/{self.rank}', line)
            if self._store.add('failed', 1) > 1:
                # the store may end with the first process, so it is not read any more
                return _numbered([self.rank], line, whole), True
            time.sleep(SAME_TIMEOUT if late else SAME_ERROR)
            texts = [self._read(f'failed/{rank}') for rank in range(self.size)]
            if late:
                missing = [rank for rank, text in enumerate(texts) if text is None]
                return f'error: {self._timeout_of(error, missing, limit)}', False
        except RuntimeError:  # the process that hosts the store has ended
            return whole, True
        ranks = [rank for rank, text in enumerate(texts) if text == line]
        if ranks == [*range(self.size)] or isinstance(error, Disagreement):
            return whole, False
        return _numbered(ranks, line, whole), False

    def _publish(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))
        self._store.add(f'{key}/published', 1)

    def _read(self, key: str) -> Any:
        """Return what was published, or None. Unlike the store's methods, this does not wait."""
        # torch 2.1 has no Store.check
        published = self._store.add(f'{key}/published', 0)
        return json.loads(self._store.get(key)) if published else None

    def _missing(self, keys: Sequence[str], seconds: float, what: str) -> list[int]:
        """Wait until all keys are published. Return the positions of those that are missing.

        Raises:
            OtherFailed: If another process fails meanwhile.
        """
        start, pause, is_silent = time.monotonic(), 0.002, True
        missing = list(range(len(keys)))
        while True:
            failed = self._store.add('failed', 0)  # before the keys, which may be published first
            missing = [i for i in missing if self._read(keys[i]) is None]
            waited = time.monotonic() - start
            if not missing or waited > seconds:
                return missing
            if failed:
                raise OtherFailed(self._failure())
            if is_silent and waited > LATE:
                is_silent = False
                # the verdict is late because another process is
                late = 'the other processes' if self.rank else self._named(missing)
                say_on_node(f'waiting for {late} to {what}')
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _failure(self) -> str:
        texts = ((rank, self._read(f'failed/{rank}')) for rank in range(self.size))
        rank, text = next(((rank, text) for rank, text in texts if text), (None, ''))
        return 'another process has failed' if rank is None else f'{self._named([rank])}: {text}'

    def _late(self, ranks: Sequence[int], what: str, remedy: str) -> str:
        return (
            f'{self._named(ranks)} of {self.size} did not {what} within {self.timeout:g} seconds: '
            + (remedy or self._inspect(ranks))
        )

    def _timeout_of(self, error: Exception, missing: Sequence[int], limit: str) -> str:
        where = operation(error)
        if not missing:
            return (
                f'all {self.size} processes waited for each other in {where} and did not finish '
                f'{limit}: they may run different operations, or the network between them fails '
                '(NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME selects its interface)'
            )
        arrived = [rank for rank in range(self.size) if rank not in missing]
        return (
            f'{self._named(missing)} did not arrive at {where} {limit}, where '
            f'{name_ranks(arrived)} waited: {self._inspect(missing)}'
        )

    def _inspect(self, ranks: Sequence[int]) -> str:
        pid = (self._read(f'process/{ranks[0]}') or {}).get('pid', 'PID')
        return (
            f'find out what it does (py-spy dump --pid {pid}); if it is only slow, set '
            'env_cfg.dist_cfg.timeout to more seconds'
        )

    def _named(self, ranks: Sequence[int]) -> str:
        """Name processes with their hosts, as far as they are known."""
        known = [where for rank in ranks if (where := self._read(f'process/{rank}'))]
        hosts = ', '.join(dict.fromkeys(where['host'] for where in known))
        pid = f', pid {known[0]["pid"]}' if known and len(ranks) == 1 else ''
        return name_ranks(ranks) + (f' ({hosts}{pid})' if hosts else '')


def _numbered(ranks: Sequence[int], line: str, whole: str) -> str:
    """Add the processes to an error, except if only the first one has it, as in a single process.

    Args:
        ranks: The processes.
        line: The error on one line.
        whole: What a single process would print: the line, or a traceback.
    """
    if ranks == [0]:
        return whole
    names = name_ranks(ranks)
    return f'{whole} ({names})' if whole == f'error: {line}' else f'{names}:\n{whole}'


def is_of_connection(error: BaseException | None, text: re.Pattern[str]) -> bool:
    """Return whether an error, or one that led to it, is of torch.distributed and has a text."""
    while error is not None:
        # gloo raises a plain RuntimeError, torch 2.1 also for the store
        if isinstance(error, RuntimeError) and text.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def operation(error: BaseException) -> str:
    """Return the operation of torch.distributed that raised an error, with iteration and line."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [str(frame.f_globals.get('__name__')) for frame, _ in frames]
    own = [i for i, module in enumerate(modules) if module.partition('.')[0] != 'torch']
    frame, line = frames[own[-1] if own else -1]
    file = '/'.join(Path(frame.f_code.co_filename).parts[-3:])
    owners = (frame.f_locals.get('self') for frame, _ in frames)
    runner = next((each for each in owners if isinstance(each, Runner | FlexibleRunner)), None)
    iteration = f'iteration {runner.iter + 1}, ' if runner is not None else ''
    called = (
        frame.f_code.co_name
        for (frame, _), module in zip(frames, modules, strict=True)
        if module == 'torch.distributed.distributed_c10d'
    )
    name = next(called, 'an operation of all processes')
    return f'{name} ({iteration}{file}:{line})'


def name_ranks(ranks: Iterable[int]) -> str:
    """Return 'process 3' or 'processes 0-2, 5'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ', '.join(f'{a}' if a == b else f'{a}-{b}' for a, b in spans)
    return f'process {text}' if text.isdigit() else f'processes {text}'


def say_on_node(line: str) -> None:
    """Print a line in the first process of each node."""
    if not int(os.environ.get('LOCAL_RANK') or 0):
        sys.stderr.write(f'{line}\n')
        sys.stderr.flush()
