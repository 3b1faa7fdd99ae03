"""A folder of drawn data, commands that run in it, and trainings that several files share."""

import os
import signal
import subprocess
import sys

import forks
import pytest
from launching import CONFIGS, ROOT, UPERNET, script

from mmgcvit.datasets import draw_shapes


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """An empty folder, with data in shapes/."""
    folder = tmp_path_factory.mktemp('launching')
    draw_shapes(folder / 'shapes', num_train=16, num_val=4, progress=False)
    return folder


@pytest.fixture(scope='session')
def run(folder):
    """Run a command in that folder, and return what it printed."""
    environment = os.environ | forks.ENVIRONMENT
    environment |= {'MMGCVIT_VENV': sys.prefix, 'SHAPES': str(folder / 'shapes')}

    def run(*command, code=0, **variables):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope='session')
def train(folder):
    """Run tools/train.py as dist_train.sh does for two processes, but in forks."""

    def train(config, work_dir, *arguments, code=0):
        found, printed = forks.run(
            *(ROOT / 'tools' / 'train.py', config, '--launcher', 'pytorch'),
            *('--work-dir', work_dir, *arguments),
            out=work_dir / 'printed',
            cwd=folder,
            ranks=2,
            SHAPES=str(folder / 'shapes'),
        )
        assert found == code, printed[-4000:]
        return printed

    return train


@pytest.fixture
def start_test(folder, tmp_path):
    """Start tools/test.py in a fork, which does not outlive the test."""
    started = []

    def start_test(*arguments, **variables):
        variables |= dict(out=tmp_path / 'printed', SHAPES=str(folder / 'shapes'))
        # several processes collect their results in the current folder
        running = forks.Fork(ROOT / 'tools' / 'test.py', *arguments, cwd=folder, **variables)
        started.append(running)
        return running

    yield start_test
    for running in started:
        if running.poll() is None:
            running.signal(signal.SIGKILL)


@pytest.fixture
def evaluate(start_test):
    """Run tools/test.py in one process, and return what it printed."""

    def evaluate(*arguments):
        running = start_test(*arguments)
        code, printed = running.wait(240), running.out.read_text()
        assert code == 0, printed[-4000:]
        return printed

    return evaluate


@pytest.fixture(scope='session')
def mask_rcnn(run, tmp_path_factory):
    """The work dir of a detector that dist_train.sh has trained, and what it printed."""
    work_dir = tmp_path_factory.mktemp('mask_rcnn')
    arguments = ('mask_rcnn_tiny.py', 2, '--work-dir', work_dir, '--auto-scale-lr')
    printed = run(*script('dist_train.sh', CONFIGS / arguments[0], *arguments[1:]))
    return work_dir, printed


@pytest.fixture(scope='session')
def upernet(train, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('upernet')
    # with this seed it predicts more than the background, on both stacks
    seed = ('--cfg-options', 'randomness.seed=2')
    return work_dir, train(UPERNET, work_dir, *seed)
