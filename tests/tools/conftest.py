"""A folder of drawn data, commands that run in it, and trainings that several files share."""

import os
import subprocess
import sys

import forks
import pytest
from launching import CONFIGS, UPERNET, script

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


@pytest.fixture
def evaluate(folder, tmp_path):
    """Run tools/test.py in one process, which a fork is enough for."""

    def evaluate(*arguments):
        settings = dict(out=tmp_path / 'printed', SHAPES=str(folder / 'shapes'))
        code, printed = forks.run('tools/test.py', *arguments, **settings)
        assert code == 0, printed[-4000:]
        return printed

    return evaluate


@pytest.fixture(scope='session')
def mask_rcnn(run, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('mask_rcnn')
    arguments = ('mask_rcnn_tiny.py', 2, '--work-dir', work_dir, '--auto-scale-lr')
    printed = run(*script('dist_train.sh', CONFIGS / arguments[0], *arguments[1:]))
    return work_dir, printed


@pytest.fixture(scope='session')
def upernet(run, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('upernet')
    # with this seed it predicts more than the background, on both stacks
    seed = ('--cfg-options', 'randomness.seed=2')
    printed = run(*script('dist_train.sh', UPERNET, 2, '--work-dir', work_dir, *seed))
    return work_dir, printed
