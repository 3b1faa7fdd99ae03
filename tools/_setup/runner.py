"""Steps on the screen, and commands that log, show progress and die with us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import explain

LINE_EVERY_S = 15  # where lines cannot be rewritten
REWRITE_EVERY_S = 1
_NINJA = re.compile(r'^\s*\[(\d+)/(\d+)\]')
_PIP = re.compile(r'^\s*(Collecting|Downloading|Processing|Installing|Building|WARNING: Retrying)')
PR_SET_PDEATHSIG = 1


def clock(seconds: float) -> str:
    """75 s as '1:15'."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


class Screen:
    """What the user sees: steps, notes, and a status line that is rewritten on a terminal."""

    def __init__(self, total: int):
        self.total = total
        self.current = 'starting'
        self.started = False
        self._number = 0
        self._rewrites = sys.stdout.isatty()
        self._shown_at = 0.0

    def step(self, title: str) -> None:
        self._number += 1
        self.started = True
        self.current = f'step {self._number} of {self.total}, {title}'
        self.note(f'[{self._number}/{self.total}] {title}', indent='')

    def note(self, text: str, indent: str = '      ') -> None:
        self.clear_status()
        print(f'{indent}{text}', flush=True)

    def begin_status(self) -> None:
        self._shown_at = time.monotonic()

    def status(self, text: Callable[[], str]) -> None:
        """Show the status if the last one is old enough."""
        now = time.monotonic()
        if now - self._shown_at < (REWRITE_EVERY_S if self._rewrites else LINE_EVERY_S):
            return
        self._shown_at = now
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            print('\r\x1b[K' + f'      {text()}'[:width], end='', flush=True)
        else:
            print(f'      {text()}', flush=True)

    def clear_status(self) -> None:
        if self._rewrites:
            print('\r\x1b[K', end='', flush=True)


class PipProgress:
    """Elapsed time and what pip said last."""

    def __init__(self):
        self._began = time.monotonic()
        self._doing = ''

    def see(self, line: str) -> None:
        if line.startswith('Installing collected packages:'):
            self._doing = f'Installing {line.count(",") + 1} packages'
        elif _PIP.match(line):
            # Local indexes make pip print whole paths.
            self._doing = re.sub(r'(file:|https?:)?/\S*/', '', line.strip())[:90]

    def __str__(self) -> str:
        return f'{clock(time.monotonic() - self._began)}  {self._doing}'


class BuildProgress:
    """Files compiled, elapsed and remaining time, from ninja's own count."""

    def __init__(self):
        self._began = time.monotonic()
        self._done = self._total = 0
        self._done_at = 0.0

    def see(self, line: str) -> None:
        if match := _NINJA.match(line):
            self._done, self._total = int(match[1]), int(match[2])
            self._done_at = time.monotonic()

    def __str__(self) -> str:
        elapsed = time.monotonic() - self._began
        if not self._done:
            return f'{clock(elapsed)} elapsed, the first files are being compiled'
        whole = (self._done_at - self._began) * self._total / self._done
        left = max(0, whole - elapsed)
        return (
            f'{self._done}/{self._total} files, {clock(elapsed)} elapsed, about {clock(left)} left'
        )


class Runner:
    """Run commands one at a time, all their output going to one log.

    Args:
        screen: Where progress is shown.
        log_path: The log. The last command's output is kept in memory too
            (``output``), as the disk may be full.
        env: The environment variables of every command.
        lock_fd: An open lock that the commands hold too, so that one that
            outlives this process keeps the next set-up waiting.
    """

    def __init__(self, screen: Screen, log_path: Path, env: dict[str, str], lock_fd: int):
        self.screen = screen
        self.log_path = log_path
        self.env = env
        self.output: deque[str] = deque(maxlen=2000)
        self._lock_fd = lock_fd
        self._log = log_path.open('wb', buffering=0)

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        progress: PipProgress | BuildProgress | None = None,
    ) -> list[str]:
        """Run a command and return the last lines of its output.

        Raises:
            SetupError: It failed.
        """
        progress = progress or PipProgress()
        words = [str(word) for word in command]
        self._write(f'\n$ {" ".join(words)}\n')
        self.output.clear()
        process = subprocess.Popen(
            words,
            env={**self.env, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(self._lock_fd,),
            preexec_fn=_die_with_parent,
        )
        try:
            self._follow(process, progress)
        except BaseException:
            _end_group(process)
            raise
        finally:
            self.screen.clear_status()
        output = list(self.output)
        if process.returncode:
            raise explain(output, process.returncode)
        return output

    def _follow(self, process: subprocess.Popen, progress: PipProgress | BuildProgress) -> None:
        self.screen.begin_status()
        pipe = process.stdout.fileno()
        rest = b''
        while True:
            if select.select([pipe], [], [], 0.5)[0]:
                chunk = os.read(pipe, 1 << 16)
                *lines, rest = (rest + chunk).split(b'\n')
                if not chunk and rest:
                    lines.append(rest)
                for line in lines:
                    self._see(line.decode(errors='replace'), progress)
                if not chunk:
                    break
            self.screen.status(lambda: str(progress))
        process.wait()

    def _see(self, line: str, progress: PipProgress | BuildProgress) -> None:
        self._write(line + '\n')
        self.output.append(line.rstrip())
        progress.see(line)

    def _write(self, text: str) -> None:
        # A full disk is reported by the command that met it.
        with contextlib.suppress(OSError):
            self._log.write(text.encode(errors='replace'))


def _die_with_parent() -> None:
    """Linux ends this process when the set-up is killed without a chance to clean up."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(process: subprocess.Popen) -> None:
    for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
