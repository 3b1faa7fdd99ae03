"""noxfile.py, with a stand-in for nox; nothing is installed."""

import json
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INTERRUPTED = 'Ctrl-C'
PASSED = '<testcase classname="tests.ops.test_windows" name="test_a"/>'
PASSED += '<testcase classname="tests.ops.test_windows" name="test_b"><skipped/></testcase>'
FAILED = '<testcase classname="tests.test_x" name="test_c"><failure message="assert 1&#10;x"/>'
FAILED += (
    '</testcase><testcase name="tests.test_y"><error message="collection failure"/></testcase>'
)


class CommandFailed(Exception):
    pass


class Session:
    """A stand-in for a session of nox, whose pytest writes a report."""

    def __init__(self, name, folder, cases=PASSED, posargs=(), breaks=''):
        self.name, self.cases, self.posargs, self.breaks = name, cases, list(posargs), breaks
        self.virtualenv = types.SimpleNamespace(location=str(folder))
        self.env, self.calls = {}, []

    def run(self, *command, **options):
        self.calls.append(' '.join(map(str, command)))
        if self.breaks and self.breaks in self.calls[-1]:
            raise CommandFailed('Returned code 1')
        if Path(command[0]).name == 'pytest':
            if self.cases == INTERRUPTED:
                Path(command[2]).write_text('<testsuites/>')
                raise KeyboardInterrupt
            report = f'<testsuites><testsuite>{self.cases}</testsuite></testsuites>'
            Path(command[2]).write_text(report)
        return 'a warning\n["3.11.9", {"torch": "2.14.1", "mmdet": "3.3.0"}]\n'

    def log(self, text):
        self.calls.append(text)

    def error(self, text):
        raise CommandFailed(text)

    skip = error


def git(folder, *words):
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b.c', '-c', 'commit.gpgsign=false')
    subprocess.run(['git', *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load noxfile.py in a repository of its own; return its names and the selected rows."""
    checkout = tmp_path / 'checkout'
    (checkout / 'docs' / 'data').mkdir(parents=True)
    (checkout / 'noxfile.py').write_text((ROOT / 'noxfile.py').read_text())
    (checkout / 'docs/support.md').write_text(
        '<!-- results: made by noxfile.py -->\n<!-- end of results -->\n\nThe end.\n'
    )
    git(checkout, 'init', '-q')
    git(checkout, 'add', '.')
    git(checkout, 'commit', '-qm', 'first')
    nox, command = types.ModuleType('nox'), types.ModuleType('nox.command')
    nox.options, nox.session = types.SimpleNamespace(), lambda *args, **options: None
    nox.Session, command.CommandFailed = Session, CommandFailed
    monkeypatch.setitem(sys.modules, 'nox', nox)
    monkeypatch.setitem(sys.modules, 'nox.command', command)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=9e9))
    monkeypatch.setenv('MMGCVIT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('MMGCVIT_TESTS', raising=False)  # of a row that runs this test

    def load():
        names = runpy.run_path(str(checkout / 'noxfile.py'))
        return types.SimpleNamespace(**names, checkout=checkout, selected=nox.options.sessions)

    return load


def table(noxfile):
    lines = noxfile.PAGE.read_text().splitlines()
    rows = (line.strip('| ').split(' | ') for line in lines if line.startswith('| `'))
    return {row[0].strip('`'): row[1:] for row in rows}


def test_a_row_is_written_and_not_selected_again(load, tmp_path):
    noxfile = load()
    assert noxfile.selected == list(noxfile.ROWS)
    session = Session('onedl', tmp_path / 'venv')
    noxfile.run_row(session)
    assert session.calls[:3] == [
        'python3.11 --version',
        '10 of 10 rows have no result for this code',
        'bash tools/setup_env.sh --stack onedl',
    ]
    expected = ['3.11.9', 'torch 2.14.1, mmdet 3.3.0', 'quick', '1', '1', '0', 'passed']
    assert table(noxfile)['onedl'][1:8] == expected
    assert table(noxfile)['py310'][-2].startswith('not run: ')
    assert noxfile.PAGE.read_text().endswith('The end.\n')
    # after an interruption, or after the page was committed, the other rows run
    git(noxfile.checkout, 'add', '.')
    git(noxfile.checkout, 'commit', '-qm', 'the page')
    assert load().selected == [row for row in noxfile.ROWS if row != 'onedl']
    with open(noxfile.checkout / 'noxfile.py', 'a') as file:
        file.write('# a change of the code\n')
    assert 'onedl' in load().selected


def test_failures_are_reasons(load, tmp_path):
    noxfile = load()
    with pytest.raises(CommandFailed, match='assert 1'):
        noxfile.run_row(Session('py312', tmp_path / 'venv', PASSED + FAILED))
    reason = 'failed: tests.test_x::test_c: assert 1 x (and 1 more)'
    assert table(noxfile)['py312'][4:8] == ['1', '1', '2', reason]
    with pytest.raises(CommandFailed, match='Returned code 1'):
        noxfile.run_row(Session('py313', tmp_path / 'venv', breaks='setup_env'))
    assert table(noxfile)['py313'][-2] == 'not run: a command failed (Returned code 1)'
    with pytest.raises(CommandFailed, match='no test was run'):
        noxfile.run_row(Session('onedl', tmp_path / 'venv', ''))
    selected = load().selected
    assert {'py313', 'onedl'} <= {*selected} and 'py312' not in selected


def test_an_interrupted_row_runs_again(load, tmp_path):
    noxfile = load()
    with pytest.raises(KeyboardInterrupt):
        noxfile.run_row(Session('onedl', tmp_path / 'venv', INTERRUPTED))
    assert 'onedl' in load().selected and not table(noxfile)


def test_what_a_row_needs_and_took(load, tmp_path, monkeypatch):
    noxfile = load()
    noxfile.DATA.write_text('{"py313": {"seconds": 754}}')
    session = Session('py313', tmp_path / 'venv')
    noxfile.announce(session, '3.13')
    assert session.calls[-1].endswith('; this row last took 13 min')
    with pytest.raises(CommandFailed, match=r'^Python 3.13 was not found$'):
        noxfile.run_row(Session('py313', tmp_path / 'venv', breaks='python3.13'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=7.5e9))
    with pytest.raises(CommandFailed, match=r'cache has 7.5 GB of free disk space, and .* 8 GB$'):
        noxfile.run_row(Session('py313', tmp_path / 'venv'))
    assert not table(noxfile)


def test_selected_tests_are_not_recorded(load, tmp_path):
    noxfile = load()
    session = Session('onedl', tmp_path / 'venv', posargs=['tests/ops', '-x'])
    noxfile.run_row(session)
    assert session.calls[-1].endswith('--no-loadscope-reorder tests/ops -x')
    assert not table(noxfile) and 'onedl' in load().selected


def test_the_files_of_the_rows_exist(load):
    noxfile = load()
    for _, _, stack in noxfile.STACKS.values():
        assert (ROOT / 'requirements' / f'{stack}.txt').exists()
    for _, _, _, *words in noxfile.WHEELS.values():
        for word in (word.partition('=')[2] or word for part in words for word in part):
            assert '/' not in word or (ROOT / word).exists(), word


def test_the_table_in_the_docs_is_that_of_its_data(load):
    noxfile = load()
    data = ROOT / 'docs/data/support.json'
    _, _, rest = (ROOT / 'docs/support.md').read_text().partition(noxfile.BEGIN)
    expected = noxfile.support_table(json.loads(data.read_text())) if data.exists() else ''
    assert rest.partition(noxfile.END)[0].strip() == expected
