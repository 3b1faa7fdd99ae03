"""Running a row of the test matrix: its environment, its tests, and the progress of both."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...errors import UserError, one_line
from ...progress import duration
from .results import Result, read_junit
from .rows import WHEEL, Row, find_python

# as in tools/run_tests.sh
PYTEST = ('-n', 'logical', '--maxprocesses=4', '--dist', 'loadfile', '--no-loadscope-reorder')
PACKAGES = ('torch', 'numpy', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation')
PACKAGES += ('mmpretrain', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')
PACKAGES += ('onedl-mmsegmentation', 'onedl-mmpretrain', 'torchvision')
VERSIONS = f"""
import importlib.metadata, json, platform
found = {{'python': platform.python_version()}}
for name in {PACKAGES}:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
ERROR = re.compile(r'(FAILED: |ERROR: |\w*Error: |no tests ran)')
SHOWN = 30  # seconds between lines of progress


class _StepFailed(Exception):
    """Ends a row whose environment or tests could not be run; the text is the reason."""


def expected_seconds(rows: Sequence[Row], known: Mapping[str, Result]) -> float | None:
    """Return the time that rows will take, from earlier results, or None if there are none."""
    times = {name: result.seconds for name, result in known.items() if result.is_final}
    if not times:
        return None
    mean = sum(times.values()) / len(times)
    return sum(times.get(row.name, mean) for row in rows)


def run_row(
    row: Row,
    checkout: Path,
    environment: Path,
    log: Path,
    result: Result,
    tests: Sequence[str],
    show: Callable[[str], None],
) -> Result:
    """Create the environment of a row, run the tests in it and return the result.

    The environment is created again if it exists, except the one of a stack, which
    ``tools/setup_env.sh`` updates.

    Args:
        row: The row.
        checkout: The repository.
        environment: Folder of the environment.
        log: File for the output of all commands.
        result: Result with the commit, the date and the tier.
        tests: Arguments of pytest that replace those of the row, if any.
        show: Called with a line of progress.
    """
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    report = log.with_suffix('.xml')
    report.unlink(missing_ok=True)
    with open(log, 'w', encoding='utf-8') as file:
        runner = _Commands(checkout, file.write, show, start)
        try:
            _prepare(row, checkout, environment, runner)
            python = environment / 'bin' / 'python'
            versions = json.loads(runner.run([python, '-I', '-c', VERSIONS]).splitlines()[-1])
            result = replace(result, python=versions.pop('python'), versions=versions)
            selected = [*PYTEST, '-m', 'not nightly'] if result.tier == 'all' else PYTEST
            # the script and not python -m pytest, which would import the checkout's package
            command = [environment / 'bin' / 'pytest', '-q', '--junitxml', report, *selected]
            runner.run([*command, *(tests or row.tests)], fails=True)
            if not report.is_file():
                raise _StepFailed(runner.reason())
            result = replace(result, **read_junit(report))
            if not result.is_final and not result.reason:
                raise _StepFailed('no test was run')
        except _StepFailed as error:
            result = replace(result, reason=str(error))
    return replace(result, seconds=round(time.monotonic() - start))


def _prepare(row: Row, checkout: Path, environment: Path, runner: '_Commands') -> None:
    """Create the environment of a row."""
    python = find_python(row.python)
    if python is None:
        raise _StepFailed(f'Python {row.python} was not found: pyenv install {row.python}')
    if row.stack:
        runner.environ |= {'PYTHON': python, 'MMGCVIT_VENV': str(environment)}
        runner.run(['bash', checkout / 'tools' / 'setup_env.sh', '--stack', row.stack])
        return
    for option, name in zip(row.packages, row.packages[1:], strict=False):
        if option in ('-r', '-c') and not (checkout / name).is_file():
            raise _StepFailed(f'{name} does not exist')
    shutil.rmtree(environment, ignore_errors=True)
    runner.run([python, '-I', '-m', 'venv', environment])
    pip: list[str | Path] = [environment / 'bin' / 'python', '-I', '-m', 'pip']
    with _wheel(checkout, runner) as wheel:
        packages = [package.replace(WHEEL, str(wheel)) for package in row.packages]
        runner.run([*pip, 'install', *packages])
    runner.run([*pip, 'check'])  # before the tools, whose dependencies are not installed
    runner.run([*pip, 'install', *row.tools])


@contextmanager
def _wheel(checkout: Path, runner: '_Commands') -> Iterator[Path]:
    """Build the wheel of the tracked files."""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=checkout, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        # a copy, because setuptools builds in the folder and packs what an earlier build left there
        for name in filter(None, listed.stdout.split('\0')):
            target = Path(folder, 'source', name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, target)
        command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', folder]
        runner.run([*command, f'{folder}/source'])
        (wheel,) = Path(folder).glob('*.whl')
        yield wheel


class _Commands:
    """Runs commands in the checkout, and shows their progress.

    Args:
        checkout: Working directory.
        write: Called with the output.
        show: Called with a line of progress.
        start: ``time.monotonic()`` at the start of the row.
    """

    def __init__(
        self,
        checkout: Path,
        write: Callable[[str], object],
        show: Callable[[str], None],
        start: float,
    ) -> None:
        # other installations must not be visible in the environment
        hidden = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'PYTEST_ADDOPTS')
        self.environ = {k: v for k, v in os.environ.items() if k not in hidden}
        self.environ |= {'PYTHONNOUSERSITE': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
        self._checkout, self._write, self._show, self._start = checkout, write, show, start
        self._output: list[str] = []
        self._doing = ''

    def run(self, command: Sequence[str | Path], fails: bool = False) -> str:
        """Run a command and return its output.

        Args:
            command: The command and its arguments.
            fails: Whether it may fail.

        Raises:
            _StepFailed: If it fails and may not.
        """
        words = [str(word) for word in command]
        self._write(f'$ {" ".join(words)}\n')
        self._output, self._doing = [], Path(words[0]).name
        done = threading.Event()
        with subprocess.Popen(
            words,
            cwd=self._checkout,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,  # so that its children can be ended too
        ) as process:
            threading.Thread(target=self._show_until, args=(done,), daemon=True).start()
            try:
                for line in process.stdout or ():
                    self._write(line)
                    self._output.append(line.rstrip())
                    self._doing = _progress(line) or self._doing
            except BaseException:
                os.killpg(process.pid, signal.SIGTERM)
                raise
            finally:
                done.set()
        if process.returncode and not fails:
            raise _StepFailed(self.reason())
        return '\n'.join(self._output)

    def _show_until(self, done: threading.Event) -> None:
        # in a thread, since pip is silent for minutes while it installs
        while not done.wait(SHOWN):
            self._show(f'{duration(time.monotonic() - self._start):>8}  {self._doing}')

    def reason(self) -> str:
        """Return the last line of the output that looks like an error, or else the last one."""
        errors = [line for line in self._output if ERROR.match(line.strip())]
        return one_line((errors or [line for line in self._output if line] or ['no output'])[-1])


def _progress(line: str) -> str:
    """Return what a line of pip or pytest says about the progress, or ''."""
    if found := re.search(r'\[ *(\d+%)\]$', line.rstrip()):
        return f'tests: {found[1]}'
    found = re.match(r' *(Collecting|Downloading|Installing collected packages|\[\d)[^,]*', line)
    return one_line(found[0], 72) if found else ''


def cache_folder() -> Path:
    """Return the folder of environments and results, as in ``.ci/run``."""
    if folder := os.environ.get('MMGCVIT_CACHE'):
        return Path(folder).absolute()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmgcvit'


def require_room(folder: Path, gigabytes: int = 7) -> None:
    """Raise a UserError if an environment would not fit on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise UserError(
            f'{folder} has {free:.1f} GB free, and an environment takes {gigabytes} GB: free some '
            'space, or set MMGCVIT_CACHE to a folder on another disk'
        )
