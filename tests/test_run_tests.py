"""tools/run_tests.sh, with stand-ins for the setup and Python; the tiers of the tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTEST = (
    '-m pytest -ra --durations=10 --durations-min=1 --disable-warnings'
    ' -n logical --maxprocesses=4 --dist loadfile --no-loadscope-reorder'
)


@pytest.fixture
def run_tests(tmp_path):
    """Run it in a checkout whose setup and Python only record their arguments.

    A call fails if the variable ``BREAK`` is part of its record.
    """
    calls, tools = tmp_path / 'calls', tmp_path / 'checkout' / 'tools'
    for path, name in ((tools / 'setup_env.sh', 'setup '), (tmp_path / 'venv/bin/python', '')):
        path.parent.mkdir(parents=True)
        body = f'line="{name}$*"; echo "$line" >>{calls}; [[ "$line" != *"${{BREAK:-nothing}}"* ]]'
        path.write_text(f'#!/usr/bin/env bash\n{body}\n')
        path.chmod(0o755)
    shutil.copy(ROOT / 'tools' / 'run_tests.sh', tools)

    def run(*arguments, **variables):
        done = subprocess.run(
            ['bash', tools / 'run_tests.sh', *arguments],
            env={**os.environ, 'MMGCVIT_VENV': str(tmp_path / 'venv'), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.mark.parametrize(
    ('arguments', 'setup', 'selected'),
    [
        ([], 'setup ', ''),
        (['-n', '0', 'tests/a b.py'], 'setup ', ' -n 0 tests/a b.py'),
        (['--all', '--stack', 'onedl', '-x'], 'setup --stack onedl', ' -m not nightly -x'),
        (['--stack=onedl', '--nightly'], 'setup --stack=onedl', ' -m '),
    ],
)
def test_all_parts_run_and_their_times_are_shown(run_tests, arguments, setup, selected):
    done, calls = run_tests(*arguments)
    assert done.returncode == 0, done.stdout
    lint = ['-m ruff format --check .', '-m ruff check .', '-m mypy']
    assert calls == [setup, *lint, PYTEST + selected]
    *_, table = done.stdout.split('=== result ===\n')
    rows = [line.rsplit(maxsplit=3) for line in table.splitlines()]
    assert [(name.strip(), verdict) for name, verdict, *_ in rows] == [
        (name, 'passed') for name in ('setup', 'ruff format', 'ruff check', 'mypy', 'pytest')
    ]
    assert all(unit == 's' and seconds.isdigit() for *_, seconds, unit in rows)


@pytest.mark.parametrize('part', ['setup', 'ruff format', 'ruff check', 'mypy', 'pytest'])
def test_a_part_that_fails_is_shown_and_only_the_setup_ends_the_run(run_tests, part):
    done, calls = run_tests(BREAK=part)
    assert done.returncode == 1
    assert len(calls) == (1 if part == 'setup' else 5)
    *_, table = done.stdout.split('=== result ===\n')
    (failed,) = [line for line in table.splitlines() if 'FAILED' in line]
    assert failed.startswith(part) and table.count('passed') == len(calls) - 1


def test_help_is_the_head_of_the_file(run_tests):
    done, calls = run_tests('--help')
    assert done.returncode == 0 and calls == []
    for option in ('--all', '--nightly', '--stack', '-n 0'):
        assert option in done.stdout
    assert 'set -' not in done.stdout


@pytest.mark.parametrize(
    ('selection', 'left'),
    [
        ([], ['quick']),
        (['-m', 'not nightly'], ['quick', 'slow']),
        (['-m', ''], ['quick', 'slow', 'nightly']),
    ],
)
def test_costly_tests_are_deselected_by_default(tmp_path, selection, left):
    lines = ['import pytest', 'def test_quick(): pass']
    for tier in ('slow', 'nightly'):
        lines += [f'@pytest.mark.{tier}', f'def test_{tier}(): pass']
    (tmp_path / 'test_tiers.py').write_text('\n'.join(lines))
    command = ('-m', 'pytest', '-q', '--collect-only', '-c', ROOT / 'pyproject.toml', '--rootdir')
    done = subprocess.run(
        [sys.executable, *command, tmp_path, *selection, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert [line.split('::test_')[1] for line in done.stdout.splitlines() if '::' in line] == left
