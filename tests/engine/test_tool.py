"""How the processes of tools end."""

import os
import signal
import subprocess
import sys
import time
import warnings

import forks
import pytest

from mmgcvit.engine import run_tool, runner_parser, tool
from mmgcvit.errors import UserError

# Pairs of processes, one after the other; the parent imports torch for all of them. They exit
# through the interpreter, unlike the processes of forks.py.
PAIRS = """
import os, sys
import torch
import torch.distributed as dist
from mmgcvit.engine import run_tool, runner_parser
from mmgcvit.errors import UserError

folder, *kinds = sys.argv[1:]
for pair, kind in enumerate(kinds):
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            break
    if children[-1] == 0:
        break
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(kind, *codes, flush=True)
else:
    os._exit(0)

file = os.open(f'{folder}/{kind}', os.O_CREAT | os.O_APPEND | os.O_WRONLY)
os.dup2(file, 2)

def main():
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/{pair}', rank=rank, world_size=2
    )
    for _ in range(5):
        dist.all_reduce(torch.ones(3))
        dist.all_gather_object([None, None], ['a'])
    if kind == 'ours':
        raise UserError('loss is NaN')
    if kind == 'other':
        raise RuntimeError('peer left')

run_tool(main)
"""


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Exit codes of the pairs, and what they wrote to stderr; by the way in which they end."""
    folder = tmp_path_factory.mktemp('pairs')
    kinds = ['ours'] * 8 + ['other'] * 8 + ['well'] * 2
    done = subprocess.run(
        [sys.executable, '-c', PAIRS, str(folder), *kinds],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ''
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [kind for kind, *_ in lines] == kinds
    return {
        kind: (
            [int(code) for other, *codes in lines for code in codes if other == kind],
            (folder / kind).read_text(),
        )
        for kind in kinds
    }


def test_processes_that_are_connected_end_with_an_error_and_no_abort(pairs):
    codes, errors = pairs['ours']
    assert codes == [1] * 16
    assert errors.splitlines() == ['error: loss is NaN'] * 16


def test_an_unexpected_error_is_told_in_full_and_does_not_abort_either(pairs):
    codes, errors = pairs['other']
    assert codes == [1] * 16
    assert errors.count('Traceback') == errors.count('RuntimeError: peer left\n') == 16


def test_processes_that_end_well_take_their_leave(pairs):
    codes, errors = pairs['well']
    assert codes == [0] * 4
    assert errors == ''


def test_a_file_that_cannot_be_had_is_one_line_and_other_system_errors_are_told_in_full(
    tmp_path, capsys
):
    def no_file():
        (tmp_path / 'nothing').read_text()

    def no_network():
        raise ConnectionResetError('peer left')

    for main in (no_file, no_network):
        with pytest.raises(SystemExit) as end:
            run_tool(main)
        assert end.value.code == 1
        printed = capsys.readouterr().err
        if main is no_file:
            assert printed.startswith('error: ') and printed.endswith("nothing'\n")
            assert printed.count('\n') == 1
        else:
            assert printed.startswith('Traceback')
            assert printed.endswith('ConnectionResetError: peer left\n')


@pytest.mark.parametrize('spelling', ['--local-rank=3', '--local_rank=3'])
@pytest.mark.parametrize(('before', 'after'), [(None, '3'), ('1', '1')])
def test_the_rank_that_torch_distributed_launch_passes_is_taken(
    monkeypatch, spelling, before, after
):
    monkeypatch.setenv('LOCAL_RANK', '')
    monkeypatch.delenv('LOCAL_RANK')
    if before:
        monkeypatch.setenv('LOCAL_RANK', before)
    # it comes first, as the launcher puts it
    args = runner_parser('').parse_args([spelling, 'config.py', '--launcher', 'pytorch'])
    assert os.environ['LOCAL_RANK'] == after
    assert args.config == 'config.py'


def test_without_a_launcher_no_rank_is_set(monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    runner_parser('').parse_args(['config.py'])
    assert 'LOCAL_RANK' not in os.environ


ONE_FAILS = """
import os
import torch
import torch.distributed as dist
from mmgcvit.engine import run_tool

def main():
    dist.init_process_group('gloo')
    if os.environ['RANK'] == '1':
        raise RuntimeError('one alone')
    dist.all_reduce(torch.ones(3))

run_tool(main)
"""


def test_an_error_of_one_process_is_not_followed_by_those_that_it_causes(tmp_path):
    (tmp_path / 'process.py').write_text(ONE_FAILS)
    code, printed = forks.run(tmp_path / 'process.py', out=tmp_path / 'out', timeout=90, ranks=2)
    assert code == 1
    assert printed.startswith('process 1:\nTraceback') and printed.count('Traceback') == 1
    assert printed.endswith('RuntimeError: one alone\n')


SILENT = """
import os
from mmgcvit.engine import run_tool
from mmgcvit.errors import UserError

def main():
    if os.environ['RANK'] == '1':
        raise SystemExit(1)
    import time
    time.sleep(1)
    raise UserError('the first process has found it')

run_tool(main)
"""


def test_a_process_that_leaves_the_report_to_the_first_one_waits_for_it(tmp_path):
    (tmp_path / 'process.py').write_text(SILENT)
    code, printed = forks.run(tmp_path / 'process.py', out=tmp_path / 'out', timeout=60, ranks=2)
    assert (code, printed) == (1, 'error: the first process has found it\n')


@pytest.mark.parametrize(
    ('error', 'waits'),
    [
        ('[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1', True),
        ('shapes differ', False),
    ],
)
def test_only_an_error_that_another_process_causes_is_held_back(monkeypatch, error, waits):
    waited = []

    def main():
        raise RuntimeError(error)

    monkeypatch.setattr(tool, 'is_distributed', lambda: True)
    monkeypatch.setattr(tool.time, 'sleep', waited.append)
    monkeypatch.setattr(tool.os, '_exit', sys.exit)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_tool(main)
    signal.signal(signal.SIGTERM, before)
    assert bool(waited) == waits


def test_ctrl_c_that_a_library_replaces_by_an_error_is_one_line(capsys):
    def main():
        try:
            try:
                raise KeyboardInterrupt
            except:  # noqa: E722
                raise SyntaxError('a = (\n' * 40) from None
        except SyntaxError as error:
            raise UserError('the config cannot be read') from error

    with pytest.raises(SystemExit) as end:
        run_tool(main)
    assert (end.value.code, capsys.readouterr().err) == (130, '\ninterrupted\n')


def test_child_processes_of_tools_do_not_warn_of_pkg_resources(monkeypatch):
    ended = []
    monkeypatch.setattr(tool, 'end_with_parent', lambda: ended.append(True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        tool.prepare_child()
        warnings.warn('pkg_resources is deprecated as an API', stacklevel=1)
        warnings.warn('numpy is deprecated', stacklevel=1)
    assert [str(each.message) for each in caught] == ['numpy is deprecated']
    assert ended


ENDS = {
    signal.SIGINT: (130, '\ninterrupted\n'),
    signal.SIGTERM: (-signal.SIGTERM, '\nstopped by SIGTERM\n'),
}


def signalled(command, number, folder, **variables):
    """Send a signal to a process that has printed ready; return its exit code and the rest."""
    running = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stdout.readline() == 'ready\n'
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    return running.returncode, error


@pytest.mark.parametrize('number', ENDS)
@pytest.mark.parametrize('name', ['train', 'test', 'rehearse'])
def test_signals_during_the_imports_are_one_line(tmp_path, name, number):
    (tmp_path / 'mmgcvit').mkdir()
    (tmp_path / 'mmgcvit' / '__init__.py').write_text(
        "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    command, path = [forks.ROOT / 'tools' / f'{name}.py'], {'PYTHONPATH': str(tmp_path)}
    assert signalled(command, number, tmp_path, **path) == ENDS[number]
    if name == 'train':  # the first process prints it
        assert signalled(command, number, tmp_path, RANK='1', **path) == (ENDS[number][0], '')
    if (name, number) == ('train', signal.SIGTERM):  # another process may have failed
        assert signalled(command, number, tmp_path, WORLD_SIZE='2', **path) == (ENDS[number][0], '')


BUILDING = """
import sys
sys.path.append({tools!r})
import _signals, os, time
from mmgcvit.engine import run_tool

def main():
    if os.fork() == 0:  # a data worker
        os.kill(os.getpid(), 15)
    os.wait()
    print('ready', flush=True)
    time.sleep(60)

run_tool(main)
"""


@pytest.mark.parametrize('number', ENDS)
def test_signals_before_a_training_are_one_line(tmp_path, number):
    (tmp_path / 'tool.py').write_text(BUILDING.format(tools=str(forks.ROOT / 'tools')))
    running = forks.Fork(tmp_path / 'tool.py', out=tmp_path / 'out')
    deadline = time.monotonic() + 60
    while 'ready' not in running.out.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.signal(number)
    assert (running.wait(60), running.out.read_text()) == (
        ENDS[number][0],
        'ready\n' + ENDS[number][1],
    )
