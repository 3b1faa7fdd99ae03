"""mmcv's wheel: built from source once, kept in a cache, checked."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .cuda import Choice, TorchInfo
from .errors import SetupError
from .runner import BuildProgress, Runner

# Measured with 2 jobs, for the CPU operators: from 12.5 to 26 core-minutes.
CPU_CORE_MINUTES = (12.5, 26)
SLOWEST_FILE_MINUTES = 1


def key(stack: str, mmcv: str, torch: str, variant: str = '*') -> str:
    """The name of a wheel's folder: all that decides whether a wheel fits an environment."""
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    machine = platform.machine()
    return f'{stack}-mmcv{mmcv}-torch{torch}-{python}-{variant}-{machine}'


def cached(folder: Path) -> Path | None:
    """The wheel in a folder of the cache; a broken one counts as none."""
    for path in sorted(folder.glob('mmcv-*.whl')) + sorted(folder.glob('onedl_mmcv-*.whl')):
        if has_operators(path):
            return path
    return None


def has_operators(path: Path) -> bool:
    """Whether a wheel is whole and contains the compiled extension."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return any(n.startswith('mmcv/_ext') and n.endswith('.so') for n in wheel.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def expected_time(jobs: int, choice: Choice) -> str:
    """What to tell the user before the build begins."""
    low, high = (max(SLOWEST_FILE_MINUTES, round(m / jobs)) for m in CPU_CORE_MINUTES)
    if choice.variant == 'cpu':
        return f'about {low}-{high} min with {jobs} jobs' if jobs > 1 else f'about {low}-{high} min'
    return (
        f'several times the {low}-{high} min that the CPU operators alone take with {jobs} jobs; '
        'the remaining time shows after the first files'
    )


def build(
    runner: Runner,
    python: Path,
    requirement: str,
    torch: TorchInfo,
    env: Mapping[str, str],
    work: Path,
) -> Path:
    """Build the wheel.

    Args:
        runner: Runs the commands.
        python: The environment's interpreter, torch installed.
        requirement: Name and version, such as ``mmcv==2.1.0``.
        torch: The torch to build against.
        env: Variables of the build.
        work: An empty folder to work in.

    Returns:
        The path of the wheel, in ``work``.

    Raises:
        SetupError: The build failed, or gave a wheel without operators.
    """
    # setup.py imports torch, which an isolated build would not see: the onedl
    # one then gives a wheel without operators and no error.
    shared = ['--no-deps', '--no-build-isolation', '--no-cache-dir']
    # Both setup.py files leave the operators out on demand.
    env = {**env, 'MMCV_WITH_OPS': '1'}
    command = [python, '-m', 'pip', 'download', *shared, '--no-binary', ':all:', '-d', work]
    runner.run([*command, requirement], env=env)
    source = _unpack(next(work.glob('*.tar.gz')), work / 'source')
    if needs_cpp20(torch.version):
        # Changed here rather than in CXX: nvcc has to be told as well.
        setup = source / 'setup.py'
        setup.write_text(setup.read_text().replace('-std=c++17', '-std=c++20'))
    command = [python, '-m', 'pip', 'wheel', *shared, '-v', '-w', work / 'wheel', source]
    runner.run(command, env=env, progress=BuildProgress())
    wheel = next((work / 'wheel').glob('*.whl'))
    if not has_operators(wheel):
        what = f'{wheel.name} was built without operators (mmcv/_ext*.so)'
        raise SetupError(what, 'see the log for why the extension was skipped')
    return wheel


def _unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, 'data_filter'):
            archive.extractall(folder, filter='data')
        else:
            archive.extractall(folder)
    return next(folder.iterdir())


def needs_cpp20(torch: str) -> bool:
    """Whether the headers of this torch ask for C++20, which mmcv does not set."""
    major, minor = torch.split('.')[:2]
    return (int(major), int(minor)) >= (2, 14)


def keep(wheel: Path, folder: Path) -> Path:
    """Puts a wheel into the cache: it appears there whole or not at all.

    The caller holds the lock of this folder, so a part found here is a killed set-up's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob('.*.part'):
        leftover.unlink()
    unfinished = folder / f'.{os.getpid()}.part'
    try:
        shutil.copyfile(wheel, unfinished)
        return unfinished.replace(folder / wheel.name)
    finally:
        unfinished.unlink(missing_ok=True)
