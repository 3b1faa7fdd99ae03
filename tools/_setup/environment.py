"""The environment on disk: what is recorded in it, and whether it is still right."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from .errors import SetupError

CHECKOUT = Path(__file__).resolve().parents[2]
REQUIREMENTS = CHECKOUT / 'requirements'
SCRIPTS = CHECKOUT / 'tools'
STACKS = ('openmmlab', 'onedl')
# What has to be there before mmcv and the packages without a wheel are built.
BASE = ('torch', 'torchvision', 'setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'click')


def requirement_files(stack: str) -> list[Path]:
    return [REQUIREMENTS / f'{stack}.txt', REQUIREMENTS / 'dev.txt']


def content_hash(stack: str) -> str:
    """Hash of everything that decides what is installed, but for the place of the checkout."""
    scripts = [SCRIPTS / 'setup_env.sh', *sorted((SCRIPTS / '_setup').glob('*.py'))]
    files = [*requirement_files(stack), *scripts, CHECKOUT / 'setup.py']
    python = '.'.join(map(str, sys.version_info[:3]))
    return _digest([stack, python, os.uname().machine], files)


def requirements_hash(stack: str) -> str:
    """Hash of the versions alone."""
    return _digest([stack], requirement_files(stack))


def _digest(words: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(f'{word}\0'.encode())
    for path in files:
        digest.update(f'{path.relative_to(CHECKOUT)}\0'.encode() + path.read_bytes() + b'\0')
    return digest.hexdigest()[:16]


def pins(stack: str) -> dict[str, str]:
    """The stack's requirements by name, such as ``{'torch': 'torch==2.14.1'}``.

    Lines with an environment marker are left to pip.
    """
    found = {}
    for line in (REQUIREMENTS / f'{stack}.txt').read_text().splitlines():
        requirement = line.split('#')[0].strip()
        if match := re.fullmatch(r'([\w.-]+)==([^\s;]+)', requirement):
            found[match[1]] = requirement
    return found


def version(requirement: str) -> str:
    return requirement.split('==')[1]


class Environment:
    """A virtual environment that this script made, or will make.

    Its own records are in the folder ``.mmgcvit`` inside:

    - ``env.json``: the stack and the versions it was made for, written at the start;
    - ``installing``: there while pip changes files, so after a kill it tells
      that nothing in the environment can be relied on;
    - ``stamp.json``: written last, says what a complete environment consists of.
    """

    def __init__(self, path: Path):
        self.path = path
        self.python = path / 'bin' / 'python'
        self.records = path / '.mmgcvit'
        self.installing = self.records / 'installing'
        self.log = self.records / 'setup.log'
        self.tmp = self.records / 'tmp'

    @property
    def made_for(self) -> dict:
        return _load(self.records / 'env.json')

    @property
    def stamp(self) -> dict:
        return _load(self.records / 'stamp.json')

    def write_stamp(self, stamp: dict) -> None:
        _save(self.records / 'stamp.json', stamp)

    def drop_stamp(self) -> None:
        (self.records / 'stamp.json').unlink(missing_ok=True)

    def check_ours(self, stack: str) -> None:
        """Refuses a folder that is not ours to change, or that holds the other stack.

        Raises:
            SetupError: It is one of these.
        """
        remedy = f'choose another folder with MMGCVIT_VENV, or delete it: rm -r {self.path}'
        if self.path.exists() and not self.path.is_dir():
            raise SetupError(f'{self.path} is a file', remedy)
        if self.path.is_dir() and not self.records.is_dir() and any(self.path.iterdir()):
            raise SetupError(f'{self.path} was not made by this script and is not empty', remedy)
        theirs = self.made_for.get('stack', stack)
        if theirs != stack:
            what = (
                f'{self.path} holds the {theirs} stack; {stack} has the same module names and '
                'cannot be installed beside it'
            )
            raise SetupError(what, remedy)

    def why_anew(self, stack: str, asked_for_python: bool) -> str:
        """Why the environment cannot be brought up to date in place; '' if it can."""
        made_for = self.made_for
        if not self.records.is_dir():
            return ''
        if not made_for:
            return 'a set-up was interrupted'
        if self.installing.exists():
            return 'a set-up was interrupted while it was installing'
        if not self.python.exists():
            return 'its Python is gone'
        if made_for.get('path') != str(self.path):
            return 'it was moved'
        python = f'{sys.version_info[0]}.{sys.version_info[1]}'
        if asked_for_python and made_for.get('python') != python:
            return f'it has Python {made_for.get("python")} and {python} is asked for'
        if made_for.get('requirements') != requirements_hash(stack):
            return 'the pinned versions have changed'
        return ''

    def clear(self) -> None:
        """Deletes what is inside; a kill on the way leaves an environment known to be broken."""
        self.records.mkdir(parents=True, exist_ok=True)
        self.installing.touch()
        for entry in self.path.iterdir():
            if entry != self.records:
                _remove(entry)
        for entry in self.records.iterdir():
            if entry != self.installing:
                _remove(entry)

    def begin(self, stack: str) -> None:
        """Records what the environment is being made for."""
        python = f'{sys.version_info[0]}.{sys.version_info[1]}'
        made_for = {
            'stack': stack,
            'requirements': requirements_hash(stack),
            'python': python,
            'path': str(self.path),
        }
        _save(self.records / 'env.json', made_for)

    def points_here(self) -> bool:
        """Whether the editable installation of mmgcvit is this checkout."""
        for path in self.path.glob(
            'lib/python3*/site-packages/mmgcvit-*.dist-info/direct_url.json'
        ):
            place = _load(path)
            if place.get('dir_info', {}).get('editable'):
                return Path(unquote(urlparse(place['url']).path)) == CHECKOUT
        return False

    def fresh_tmp(self) -> Path:
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir(parents=True)
        return self.tmp


def _load(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _save(path: Path, content: dict) -> None:
    unfinished = path.with_suffix('.part')
    unfinished.write_text(json.dumps(content, indent=1) + '\n')
    unfinished.replace(path)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


class Lock:
    """One set-up at a time; the system lets go of it when its holders end, however they end.

    Args:
        folder: Where lock files are kept.
        name: What is locked, in words for the user.
        note: Called with a line to show before a wait.
    """

    def __init__(self, folder: Path, name: str, note):
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self.fd = os.open(folder / f'{digest}.lock', os.O_RDWR | os.O_CREAT, 0o666)
        began = time.monotonic()
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f'waiting for another set-up that works on {name}')
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            note(f'it is done after {time.monotonic() - began:.0f} s')

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        os.close(self.fd)
