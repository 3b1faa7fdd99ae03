"""tools/_launch.py with processes that import no torch. tests/tools/test_launching.py trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# that the launcher reads or sets
VARIABLES = ('PORT', 'NNODES', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NCCL_DEBUG')
LAUNCH = Path(__file__).parents[2] / 'tools' / '_launch.py'

# behaves as its last argument says
PROCESS = """
import json, os, signal, sys, time
rank, (folder, kind) = int(os.environ['RANK']), sys.argv[1:]

def save(signum, frame):
    time.sleep(0.5)
    open(f'{folder}/{rank}', 'w').write(signal.Signals(signum).name)
    os._exit(75)

if kind == 'save' or kind == 'one cannot save' and rank == 0:
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGHUP, save)
elif kind == 'one cannot save':
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(1)))
elif kind == 'interrupt':
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
elif kind == 'environment':
    open(f'{folder}/{rank}', 'w').write(json.dumps(dict(os.environ)))
    sys.exit()
elif rank == 1:
    if kind.startswith('SIG'):
        os.kill(os.getpid(), getattr(signal, kind))
    if kind:
        sys.exit(int(kind))
open(f'{folder}/started {rank}', 'w').close()
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Start the launcher with two processes of a kind."""
    (tmp_path / 'process.py').write_text(PROCESS)

    def start(kind, before=(), **variables):
        script = [str(tmp_path / 'process.py'), str(tmp_path), kind]
        environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        return subprocess.Popen(
            [*before, sys.executable, str(LAUNCH), '2', *script],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )

    return start


def default_signals():
    """A job in the background ignores SIGINT, and one of nohup SIGHUP; so would the launcher."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ('kind', 'code', 'printed'),
    [
        ('1', 1, ''),  # the process has printed its error
        ('2', 2, ''),
        ('7', 7, 'error: process 1 ended with exit code 7\n'),
        (
            'SIGKILL',
            137,
            'error: process 1 was killed by SIGKILL: the node is probably out of memory',
        ),
        ('SIGBUS', 135, 'error: process 1 was killed by SIGBUS: shared memory is probably full'),
        (
            'SIGABRT',
            134,
            'error: process 1 was killed by SIGABRT: a library aborted it. If NCCL is named ',
        ),
        ('SIGSEGV', 139, 'error: process 1 was killed by SIGSEGV: compiled code crashed'),
    ],
)
def test_a_process_that_fails_ends_the_others(start, kind, code, printed):
    begun = time.monotonic()
    launcher = start(kind)
    out, error = launcher.communicate(timeout=50)
    assert launcher.returncode == code
    assert out == '' and error.startswith(printed)
    assert error.count('\n') == bool(printed)
    assert error.endswith('. Still running then: 0\n') == (kind == 'SIGABRT')
    assert time.monotonic() - begun < 20


def signalled(launcher, folder, number, printed=''):
    """Send a signal when both processes have started; return the exit code."""
    deadline = time.monotonic() + 30
    while len(list(folder.glob('started *'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.send_signal(number)
    _, error = launcher.communicate(timeout=50)
    assert error == printed
    return launcher.returncode


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_processes_and_they_have_time_to_save(start, tmp_path, number):
    assert signalled(start('save'), tmp_path, number) == 75
    for rank in '01':
        assert (tmp_path / rank).read_text() == number.name


def test_ctrl_c_ends_the_processes_in_their_own_way(start, tmp_path):
    assert signalled(start('interrupt'), tmp_path, signal.SIGINT) == 130


def test_sigterm_before_a_training_is_one_line(start, tmp_path):
    assert signalled(start(''), tmp_path, signal.SIGTERM, '\nstopped by SIGTERM\n') == 143


def test_a_process_that_cannot_save_decides_the_exit_code(start, tmp_path):
    assert signalled(start('one cannot save'), tmp_path, signal.SIGTERM) == 1
    assert (tmp_path / '0').exists()


def test_hangup_stays_ignored_under_nohup(start, tmp_path):
    launcher = start('save', before=['nohup'])
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob('started *'))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(1.5)
    assert launcher.poll() is None
    launcher.terminate()
    launcher.communicate(timeout=50)
    assert (tmp_path / '0').read_text() == 'SIGTERM'


def environments(launcher, folder, ranks):
    assert launcher.communicate(timeout=50) == ('', '')
    assert launcher.returncode == 0
    return [json.loads((folder / rank).read_text()) for rank in ranks]


def test_one_node(start, tmp_path):
    launcher = start('environment', MASTER_ADDR='10.0.0.9')
    first, second = environments(launcher, tmp_path, '01')
    assert 20000 <= int(first['MASTER_PORT']) < 32768
    for found, rank in ((first, '0'), (second, '1')):
        assert (found['RANK'], found['LOCAL_RANK'], found['WORLD_SIZE']) == (rank, rank, '2')
        assert found['MASTER_ADDR'] == '127.0.0.1'
        assert found['MASTER_PORT'] == first['MASTER_PORT']
        threads = found['OMP_NUM_THREADS']
        assert 1 <= int(threads) <= max(1, len(os.sched_getaffinity(0)) // 2)
        assert found['MKL_NUM_THREADS'] == threads
        assert found['NCCL_DEBUG'] == 'WARN'


@pytest.mark.parametrize(
    ('limit', 'cores'), [('400000 100000', 4), ('50000 100000', 1), ('max 100000', 16), (None, 16)]
)
def test_the_cores_of_a_container_are_counted(load_tool, monkeypatch, tmp_path, limit, cores):
    launcher = load_tool('_launch')
    file = tmp_path / 'cpu.max'
    if limit:
        file.write_text(limit)
    monkeypatch.setattr(launcher, 'open', lambda _: file.open(), raising=False)
    monkeypatch.setattr(launcher.sys, 'platform', 'darwin')
    monkeypatch.setattr(launcher.os, 'cpu_count', lambda: 16)
    assert launcher.usable_cores() == cores


def test_the_second_of_two_nodes(start, tmp_path):
    nodes = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.9')
    nodes |= dict(OMP_NUM_THREADS='3', NCCL_DEBUG='INFO')
    for local, found in enumerate(environments(start('environment', **nodes), tmp_path, '23')):
        assert (found['RANK'], found['LOCAL_RANK']) == (str(2 + local), str(local))
        assert (found['WORLD_SIZE'], found['LOCAL_WORLD_SIZE']) == ('4', '2')
        assert (found['MASTER_ADDR'], found['MASTER_PORT']) == ('10.0.0.9', '29500')
        assert (found['OMP_NUM_THREADS'], found['NCCL_DEBUG']) == ('3', 'INFO')
