"""What this machine has: cores, memory, disk, a C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import DISK_REMEDY, SetupError

GB = 1e9
MEMORY_PER_JOB = 2 * 2**30
# Measured with CUDA's torch from PyPI; pip unpacks and keeps what it downloads.
ENVIRONMENT_GB = 6.5
DOWNLOAD_GB = 3.0
BUILD_GB = 0.5
COMPILERS = {'c++': 'cc', 'g++': 'gcc', 'clang++': 'clang'}  # C++ and the C beside it
COMPILER_REMEDY = (
    'install one, on Debian or Ubuntu: apt-get install g++; on Fedora: dnf install gcc-c++; '
    'or name it: CXX=/path/to/g++ bash tools/setup_env.sh'
)


def compile_jobs(environ: Mapping[str, str]) -> int:
    """MAX_JOBS, else one per core, each with 2 GB; limits of a container count."""
    if environ.get('MAX_JOBS'):
        if not environ['MAX_JOBS'].isdigit() or int(environ['MAX_JOBS']) < 1:
            raise SetupError(f'MAX_JOBS={environ["MAX_JOBS"]}', 'give a number of 1 or more')
        return int(environ['MAX_JOBS'])
    return max(1, min(_cores(), int(_memory() / MEMORY_PER_JOB + 0.5)))


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    quota = _read('/sys/fs/cgroup/cpu.max').split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores or 1, max(1, int(quota[0]) // int(quota[1])))
    return cores or 1


def _memory() -> float:
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):
        limit = _read(f'/sys/fs/cgroup/{name}').strip()
        if limit.isdigit():
            memory = min(memory, int(limit))
    return memory


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ''


def check_compiler(environ: Mapping[str, str], standard: str, needed_for: str) -> dict[str, str]:
    """Compiles a small program against Python's headers.

    Args:
        environ: Where CXX and PATH come from.
        standard: A value of ``-std=``.
        needed_for: What the compiler is for, to be named in the error.

    Returns:
        The variables that make builds use the compiler found.

    Raises:
        SetupError: None is there, or it cannot compile the program.
    """
    named = environ.get('CXX')
    path = environ.get('PATH', '')
    names = [named] if named else COMPILERS
    found = [name for name in names if shutil.which(_word(name), path=path)]
    if not found:
        what = f'CXX={named} is not there' if named else f'no C++ compiler ({", ".join(COMPILERS)})'
        raise SetupError(f'{what}; {needed_for}', COMPILER_REMEDY)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'probe.cpp')
        source.write_text('#include <Python.h>\n#include <concepts>\nint main() { return 0; }\n')
        command = [*found[0].split(), f'-std={standard}', f'-I{sysconfig.get_path("include")}']
        result = subprocess.run(
            [*command, '-c', str(source), '-o', str(Path(folder, 'probe.o'))],
            capture_output=True,
            text=True,
            env=dict(environ),
        )
    if result.returncode:
        lines = tuple(result.stderr.strip().splitlines()[:6])
        what = f'{found[0]} cannot compile a {standard} program; {needed_for}'
        raise SetupError(what, f'GCC 11 or newer can; {COMPILER_REMEDY}', lines)
    # Unless told, torch compiles with c++ and links with the compiler that
    # Python itself was built with, which need not be here.
    return {} if named else {'CXX': found[0], 'CC': COMPILERS[found[0]]}


def _word(command: str) -> str:
    """The program in a CXX such as "ccache g++"."""
    return command.split()[0]


def check_disk(environ: Mapping[str, str], venv: Path, cache: Path) -> None:
    """Refuses a disk on which the installation would fail half-way.

    Raises:
        SetupError: Too little is free, on one of the disks concerned.
    """
    if environ.get('MMGCVIT_SKIP_DISK_CHECK') == '1':
        return
    pip_cache = environ.get('PIP_CACHE_DIR') or os.path.join(
        environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'pip'
    )
    needs = [(venv, ENVIRONMENT_GB + BUILD_GB), (Path(pip_cache), DOWNLOAD_GB), (cache, 0.1)]
    disks: dict[int, list[tuple[Path, float]]] = {}
    for folder, need in needs:
        there = _existing(folder)
        disks.setdefault(there.stat().st_dev, []).append((there, need))
    for uses in disks.values():
        folder, need = uses[0][0], sum(need for _, need in uses)
        free = shutil.disk_usage(folder).free / GB
        if free < need:
            what = f'{free:.1f} GB free at {folder}, about {need:.0f} GB needed'
            remedy = f'{DISK_REMEDY}; MMGCVIT_SKIP_DISK_CHECK=1 tries all the same'
            raise SetupError(what, remedy)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
