"""The rows of the test matrix, and the Python interpreters that they need."""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WHEEL = '{wheel}'  # in the packages of a row: the path of the built wheel
# setuptools and tifffile are in the files of the stacks; the tests also build wheels
ALL_TOOLS = ('--no-deps', '-r', 'requirements/dev.txt', 'setuptools>=77,<81', 'tifffile')
# without packages that the row is about, such as timm
TEST_TOOLS = ('-c', 'requirements/dev.txt', 'pytest', 'pytest-xdist', 'hypothesis')
PROBE = 'import ensurepip, sys, venv; print(*sys.version_info[:2], sys._base_executable)'


@dataclass(frozen=True)
class Row:
    """An environment and the tests that are run in it.

    Attributes:
        name: Name of the row.
        python: Version of Python, such as '3.11'.
        title: What is tested, for the table.
        stack: The environment is the one of ``tools/setup_env.sh --stack``, with pinned versions,
            and contains the checkout. If empty, it contains the wheel.
        packages: Without a stack: arguments of ``pip install``, with the versions that pip chooses.
            ``requirements/`` files are relative to the checkout.
        tools: Arguments of ``pip install`` for the packages of the tests, installed afterwards.
        tests: Arguments of pytest. If empty, all tests are run.
    """

    name: str
    python: str
    title: str
    stack: str = ''
    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ALL_TOOLS
    tests: tuple[str, ...] = ()


ROWS = {
    row.name: row
    for row in (
        Row('openmmlab', '3.11', 'the openmmlab stack', 'openmmlab'),
        Row('onedl', '3.11', 'the onedl stack', 'onedl'),
        Row('py310', '3.10', 'the openmmlab stack', 'openmmlab'),
        Row('py312', '3.12', 'the openmmlab stack', 'openmmlab'),
        Row('py313', '3.13', 'the openmmlab stack', 'openmmlab'),
        Row(
            'torch21',
            '3.10',
            'the wheel, the openmmlab stack and the oldest PyTorch',
            packages=('-c', 'requirements/torch21.txt', f'{WHEEL}[openmmlab]'),
        ),
        Row(
            'wheel',
            '3.11',
            'the wheel and the newest versions that it allows',
            packages=(f'{WHEEL}[openmmlab]',),
        ),
        Row(
            'mmengine',
            '3.11',
            'the wheel with PyTorch and mmengine alone: the backbone',
            packages=(WHEEL, 'mmengine', 'setuptools<81'),
            tools=TEST_TOOLS,
            # without tests of other packages: onnxruntime, torchvision and mmcv
            tests=(
                *('tests/ops', 'tests/models', '--ignore=tests/models/test_export.py'),
                *('--ignore=tests/models/test_fx.py', '--ignore=tests/models/test_variants.py'),
            ),
        ),
        Row(
            'torch',
            '3.11',
            'the wheel with PyTorch alone: the backbone',
            packages=(WHEEL, 'numpy'),
            tools=TEST_TOOLS,
            tests=(
                *('tests/ops', '--ignore=tests/ops/test_changes_and_threads.py'),
                *('tests/models/test_golden.py', 'tests/models/test_arguments.py'),
                *('tests/models/test_behaviour.py', 'tests/models/test_reference.py'),
                *('-k', 'not mmengine'),
            ),
        ),
        Row(
            'integrations',
            '3.11',
            'the wheel and the other frameworks, without mmengine',
            packages=(WHEEL, '-r', 'requirements/integrations.txt'),
            tools=TEST_TOOLS,
            tests=('tests/integrations',),
        ),
    )
}


def find_python(version: str) -> str | None:
    """Return the path of an interpreter, or None if there is none of this version.

    Like ``tools/setup_env.sh``, this looks for a command such as python3.11 that runs and can
    create environments, and returns the base interpreter of a virtual environment. Interpreters of
    pyenv are found too, whatever version is selected.
    """
    for candidate in _candidates(version):
        try:
            found = subprocess.run(
                [candidate, '-I', '-c', PROBE], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        major, _, rest = found.stdout.strip().partition(' ')
        minor, _, path = rest.partition(' ')
        if f'{major}.{minor}' == version:
            return path
    return None


def _candidates(version: str) -> Iterator[str]:
    for folder in os.get_exec_path():
        yield os.path.join(folder, f'python{version}')
    pyenv = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv')
    installed = pyenv.glob(f'versions/{version}.*/bin/python')
    # the newest first; names such as 3.13.0rc1 have several numbers
    for path in sorted(installed, key=lambda path: _numbers(path.parts[-3]), reverse=True):
        yield os.fspath(path)


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', name)]
