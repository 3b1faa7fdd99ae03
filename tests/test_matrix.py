"""tools/test_matrix.sh, with stand-ins for the environments; nothing is installed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmgcvit.analysis import matrix
from mmgcvit.analysis.matrix import results, rows, running
from mmgcvit.errors import UserError

ROOT = Path(__file__).parents[1]
BASH = shutil.which('bash')
PAGE = f'# Supported versions\n\n{results.BEGIN}\n{results.END}\n\nThe end.\n'
SETUP = """
echo "setup $*" >>"$CALLS"
if [[ $* == *"$BREAK" ]]; then echo "FAILED: step 2/4: the disk is full"; exit 1; fi
mkdir -p "$MMGCVIT_VENV/bin"
cp "$FAKES/python" "$FAKES/pytest" "$MMGCVIT_VENV/bin"
"""
PYTHON = """echo 'a warning'; echo '{"python": "3.11.9", "torch": "2.14.1", "mmdet": "3.3.0"}'"""
PYTEST = """
echo "pytest $*" >>"$CALLS"
echo '....... [ 50%]'
sleep 0.1
while [[ $1 != --junitxml ]]; do shift; done
cp "$FAKES/report.xml" "$2"
exit 1
"""
CASES = """
<testcase classname="tests.ops.test_windows" name="test_a"/>
<testcase classname="tests.ops.test_windows" name="test_b"><skipped message="no GPU"/></testcase>
"""
FAILURES = """
<testcase classname="tests.test_x" name="test_c"><failure message="assert 1 == 2&#10;x"/></testcase>
<testcase name="tests.test_y"><error message="collection failure"/></testcase>
"""


def report(cases):
    return f'<testsuites><testsuite>{cases}</testsuite></testsuites>'


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{BASH}\n{text}')
    path.chmod(0o755)


def git(folder, *words):
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b.c', '-c', 'commit.gpgsign=false')
    subprocess.run(['git', *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository with a page for the table and a stand-in for tools/setup_env.sh."""
    folder = tmp_path / 'checkout'
    script(folder / 'tools/setup_env.sh', SETUP)
    (folder / 'docs').mkdir()
    (folder / 'docs/support.md').write_text(PAGE)
    git(folder, 'init', '-q')
    git(folder, 'add', '.')
    git(folder, 'commit', '-qm', 'first')
    return folder


@pytest.fixture
def run(tmp_path, checkout, load_tool, monkeypatch, capsys):
    """Run the tool in that checkout; return its exit code, output and the calls of stand-ins."""
    fakes, calls = tmp_path / 'fakes', tmp_path / 'calls'
    script(fakes / 'python', PYTHON)
    script(fakes / 'pytest', PYTEST)
    (fakes / 'report.xml').write_text(report(CASES))
    tool = load_tool('test_matrix')
    monkeypatch.setattr(tool, 'CHECKOUT', checkout)
    monkeypatch.setattr(tool.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(running, 'find_python', lambda version: 'a python')
    monkeypatch.setattr(running, 'SHOWN', 0.05)  # seconds
    for name, value in dict(CALLS=calls, FAKES=fakes, BREAK='none').items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('MMGCVIT_CACHE', str(tmp_path / 'cache'))

    def call(*words):
        calls.write_text('')
        try:
            tool.main(words)
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out, calls.read_text().splitlines()

    call.report = fakes / 'report.xml'
    return call


def table(checkout):
    lines = (checkout / 'docs/support.md').read_text().splitlines()
    return [line.strip('| ').split(' | ') for line in lines if line.startswith('| `')]


def test_a_row_is_run_once_and_written_to_the_page(tmp_path, checkout, run):
    code, text, calls = run('--row', 'openmmlab', '--row', 'onedl')
    assert code == 0, text
    assert [call.split(' -q ')[0] for call in calls] == [
        *('setup --stack openmmlab', 'pytest'),
        *('setup --stack onedl', 'pytest'),
    ]
    assert '[1/2] openmmlab: the openmmlab stack\n' in text and '  tests: 50%\n' in text
    assert '[2/2] onedl: the onedl stack\n' in text and '; about 0 s left\n' in text
    assert not list((tmp_path / 'cache/envs').iterdir())
    first, second = table(checkout)
    assert (first[0], second[0]) == ('`openmmlab`', '`onedl`')
    assert first[2:9] == ['3.11.9', 'torch 2.14.1, mmdet 3.3.0', 'quick', '1', '1', '0', 'passed']
    assert (checkout / 'docs/support.md').read_text().endswith('The end.\n')

    # after an interruption, or after the page was committed, only what is left runs
    git(checkout, 'add', '.')
    git(checkout, 'commit', '-qm', 'the page')
    code, text, calls = run('--row', 'onedl', '--row', 'py312')
    assert code == 0 and [call for call in calls if 'setup' in call] == ['setup --stack openmmlab']
    assert 'onedl: 1 passed, 1 skipped, 0 failed' in text
    assert [row[0] for row in table(checkout)] == ['`openmmlab`', '`onedl`', '`py312`']
    assert run('--row', 'onedl', '--fresh')[2] and run('--row', 'onedl', '--all')[2]
    (checkout / 'tools/setup_env.sh').write_text(f'{SETUP}\n# a change of the code')
    assert run('--row', 'onedl')[2]


def test_a_red_row_shows_its_reason_and_the_next_row_runs(checkout, run, monkeypatch):
    monkeypatch.setenv('BREAK', 'openmmlab')
    code, text, _ = run('--row', 'openmmlab', '--row', 'onedl')
    assert code == 1
    reason = 'not run: FAILED: step 2/4: the disk is full'
    assert f'openmmlab: 0 passed, 0 skipped, 0 failed in 0 s; {reason}\n' in text
    assert [row[8] for row in table(checkout)] == [reason, 'passed']
    monkeypatch.setenv('BREAK', 'none')
    run.report.write_text(report(CASES + FAILURES))
    code, text, calls = run('--row', 'openmmlab')  # is not final, so it is tried again
    reason = 'failed: tests.test_x::test_c: assert 1 == 2 x (and 1 more)'
    assert code == 1 and calls and table(checkout)[0][5:9] == ['1', '1', '2', reason]
    assert run('--row', 'openmmlab')[0] == 1  # the stored result
    run.report.write_text(report(''))
    run('--row', 'py310')
    assert table(checkout)[2][8] == 'not run: no test was run'


def test_selected_tests_are_not_recorded(tmp_path, checkout, run):
    code, _, calls = run('--row', 'openmmlab', '--keep', '--tests', 'tests/ops', '-x')
    assert code == 0 and calls[1].endswith('--no-loadscope-reorder tests/ops -x')
    assert not table(checkout) and not (checkout / results.DATA).exists()
    assert (tmp_path / 'cache/envs/matrix-openmmlab').is_dir()


def test_missing_parts_are_reasons(checkout, run, monkeypatch):
    assert run('--row', 'torch21')[0] == 1
    assert table(checkout)[0][8] == 'not run: requirements/torch21.txt does not exist'
    monkeypatch.setattr(running, 'find_python', lambda version: None)
    run('--row', 'torch21')
    reason = 'not run: Python 3.10 was not found: pyenv install 3.10'
    assert table(checkout)[0][8] == reason
    disk = shutil.disk_usage('/')._replace(free=10**9)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: disk)
    with pytest.raises(UserError, match=r'has 1\.0 GB free, and an environment takes 7 GB'):
        run('--row', 'torch21')
    with pytest.raises(UserError, match=r'--row torch2 is not a row \(did you mean torch21\?\)'):
        run('--row', 'torch2')


def test_an_interruption_ends_all_processes(tmp_path):
    def interrupt(line):
        if line.strip().isdigit():
            pids.append(int(line))
            raise KeyboardInterrupt

    pids = []
    commands = running._Commands(tmp_path, interrupt, print, 0.0)
    with pytest.raises(KeyboardInterrupt):
        commands.run(['bash', '-c', 'sleep 60 & echo $!; wait'])
    deadline = time.monotonic() + 10
    while Path(f'/proc/{pids[0]}/cmdline').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_which_python_is_found(tmp_path, monkeypatch):
    version = f'3.{sys.version_info[1]}'
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path / 'pyenv'))
    assert matrix.find_python(version) is None
    script(tmp_path / 'bin' / f'python{version}', 'exit 127')  # as pyenv's shims
    for name in ('9', '10'):
        python = tmp_path / f'pyenv/versions/{version}.{name}/bin/python'
        script(python, f'exec {sys.executable} "$@"')
    tried = [path for path in rows._candidates(version) if 'pyenv' in path]
    assert [Path(path).parts[-3] for path in tried] == [f'{version}.10', f'{version}.9']
    assert os.path.samefile(matrix.find_python(version), sys._base_executable)
    assert matrix.find_python('3.14') is None


def test_rows():
    for name, row in matrix.ROWS.items():
        assert name == row.name and bool(row.stack) != bool(row.packages)
        files = [word.partition('=')[2] or word for word in (*row.packages, *row.tools, *row.tests)]
        if row.stack:
            files.append(f'requirements/{row.stack}.txt')
        for file in files:
            assert '/' not in file or (ROOT / file).exists(), file


def test_the_table_in_the_docs_is_that_of_its_data():
    text = (ROOT / results.PAGE).read_text()
    _, _, rest = text.partition(results.BEGIN)
    shown = rest.partition(results.END)[0].strip()
    found = results.read_results(ROOT)
    assert shown == (results.support_table(list(found.values())) if found else '')
    json.dumps([result.versions for result in found.values()])
