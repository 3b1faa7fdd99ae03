"""Trainings on GPUs by the tools: resuming, detectors, NCCL, SyncBN and FSDP. Skipped without GPUs.

tests/gpu.py describes how to rehearse these tests on a CPU.
"""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
import tiny_training
import torch
from gpu import DEVICE, needs_gpu, needs_two_gpus

from mmgcvit.datasets import draw_shapes
from mmgcvit.visualization import read_training_log
from mmgcvit.weights import read_checkpoint

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'tests' / 'data' / 'configs'
ENVIRONMENT = {
    **forks.ENVIRONMENT,
    'MMGCVIT_PYTHON': sys.executable,  # of dist_train.sh
    'CUBLAS_WORKSPACE_CONFIG': ':4096:8',  # for deterministic mode
    'NVIDIA_TF32_OVERRIDE': '0',  # float32 is rounded as such
}
if DEVICE == 'cpu':
    ENVIRONMENT['CUDA_VISIBLE_DEVICES'] = '-1'
TWO_GPUS = pytest.param(2, marks=needs_two_gpus)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A folder of drawn data."""
    root = tmp_path_factory.mktemp('gpu_training') / 'shapes'
    draw_shapes(root, num_train=16, num_val=4, progress=False)
    return root


class Training:
    """A running training, in one process or by dist_train.sh; what it prints is in a file."""

    def __init__(self, config, work_dir, *options, processes=1, **variables):
        command = [sys.executable, ROOT / 'tools' / 'train.py', config]
        if processes > 1:
            command = ['bash', ROOT / 'tools' / 'dist_train.sh', config, processes]
        self.out = Path(work_dir).with_suffix('.out')
        with open(self.out, 'w') as file:
            self.process = subprocess.Popen(
                [str(part) for part in (*command, '--work-dir', work_dir, *options)],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, code=0):
        """Wait for the end of the training; return what it has printed."""
        try:
            found = self.process.wait(400)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(self.process.pid, signal.SIGKILL)
        printed = self.out.read_text()
        assert found == code, printed[-4000:]
        assert ('running on the CPU' in printed) == (DEVICE == 'cpu')
        return printed

    def wait_for(self, iteration):
        """Wait until the log shows that an iteration has ended."""
        deadline = time.monotonic() + 400
        while not re.search(rf'Iter\(train\) \[ *{iteration}/', self.out.read_text()):
            assert self.process.poll() is None, self.out.read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)


def train(config, work_dir, *options, **settings):
    return Training(config, work_dir, *options, **settings).end()


AMP = {
    'float32': [],
    'float16': ['--amp'],
    'bfloat16': ['--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16'],
}


@needs_gpu
@pytest.mark.parametrize(
    ('precision', 'processes'),
    [
        ('float32', 1),
        ('float16', 1),
        ('bfloat16', 1),
        pytest.param('float32', 2, marks=needs_two_gpus),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(shapes, tmp_path, precision, processes):
    """20 steps in deterministic mode, or 10 steps and, from the checkpoint after 8, 12 more."""
    config = tiny_training.config(
        shapes / 'coco' / 'train2017',
        tmp_path / 'training',
        'iter',
        workers=2,
        randomness={'seed': 3, 'deterministic': True},
        train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': 20, 'val_interval': 10},
    )

    def start(name, *more, **variables):
        options = *more, *AMP[precision]
        return Training(config, tmp_path / name, *options, processes=processes, **variables)

    start('whole').end()
    killed = start('killed', HOLD_AT='10')
    killed.wait_for(10)
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.end(-signal.SIGKILL)
    assert re.search(r'resuming from \S+/iter_8\.pth', start('killed', '--resume').end())
    wanted, found = (
        read_checkpoint(tmp_path / name / 'iter_20.pth') for name in ('whole', 'killed')
    )
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(found[part], wanted[part])
    found, wanted = found['optimizer'], wanted['optimizer']
    assert_equal(found['state'], wanted['state'])
    assert ('loss_scaler' in wanted) == (precision == 'float16' and DEVICE == 'cuda')
    assert found.get('loss_scaler') == wanted.get('loss_scaler')


def assert_equal(found, wanted):
    torch.testing.assert_close(dict(found), dict(wanted), rtol=0, atol=0)


@needs_gpu
@pytest.mark.parametrize('processes', [1, TWO_GPUS])
@pytest.mark.parametrize('name', ['mask_rcnn_tiny', 'cascade_tiny', 'upernet_tiny'])
def test_published_methods_train_in_mixed_precision(shapes, tmp_path, name, processes):
    """The loss falls, processes agree, and tools/test.py gives the metrics of the validation."""
    config, work_dir = CONFIGS / f'{name}.py', tmp_path / 'training'
    train(config, work_dir, '--amp', processes=processes, SHAPES=str(shapes))
    log = read_training_log(work_dir)
    losses = list(log.loss.values())
    assert len(losses) >= 12 and all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    first, *others = (torch.load(work_dir / f'rank_{rank}.pth') for rank in range(processes))
    for other in others:
        assert_equal(other, first)
    validated = {key: list(values.values())[-1] for key, values in log.metrics.items()}
    assert validated or name == 'cascade_tiny'  # which detects nothing after so few steps
    if not validated:
        return
    (checkpoint,) = (path for path in work_dir.glob('*.pth') if 'rank' not in path.name)
    command = (ROOT / 'tools' / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'test')
    code, printed = forks.run_anew(*command, timeout=400, **ENVIRONMENT, SHAPES=str(shapes))
    assert code == 0, printed[-4000:]
    (file,) = tmp_path.glob('test/*/*.json')
    tested = json.loads(file.read_text())
    assert {key: tested[key] for key in validated} == pytest.approx(validated)


STEPS = 6


@pytest.fixture(scope='module')
def few_steps(shapes, tmp_path_factory):
    """Train for a few steps of SGD with 6 images per step; return the work dir.

    Nothing is random in a step, so several processes should compute what one process does.
    """
    folder = tmp_path_factory.mktemp('few_steps')

    def few_steps(name, processes=1, batch_norm=False, **settings):
        model = dict(drop_rate=0.0, drop_path_rate=0.0, batch_norm=batch_norm)
        torch.manual_seed(0)
        initial = tiny_training.TinyClassifier(**model)
        # runners build the model at different moments, after different random numbers
        torch.save({'state_dict': initial.state_dict()}, folder / f'{name}.pth')
        config = tiny_training.config(
            shapes / 'coco' / 'train2017',
            folder / name,
            'iter',
            workers=0,
            custom_imports={'imports': ['tiny_training', 'save_rank_weights']},
            custom_hooks=[{'type': 'SaveRankWeights'}],
            model={'type': 'TinyClassifier', **model},
            load_from=str(folder / f'{name}.pth'),
            optim_wrapper={'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}},
            train_cfg={'type': 'IterBasedTrainLoop', 'max_iters': STEPS, 'val_interval': STEPS},
            **settings,
        )
        options = {
            'train_dataloader.dataset.augment': False,
            'train_dataloader.batch_size': 6 // processes,
            'default_hooks.checkpoint.interval': STEPS,
        }
        options = [f'{key}={value}' for key, value in options.items()]
        train(config, folder / name, '--cfg-options', *options, processes=processes)
        return folder / name

    return few_steps


@pytest.fixture(scope='module')
def in_one_process(few_steps):
    return few_steps('one')


def assert_same_updates(found, wanted):
    """Compare the final weights of two work dirs relative to how far they are from the initial."""
    files = (
        wanted.with_suffix('.pth'),
        *(folder / f'iter_{STEPS}.pth' for folder in (wanted, found)),
    )
    first, last, other = (read_checkpoint(file)['state_dict'] for file in files)
    assert other.keys() == last.keys()
    floats = [name for name, value in last.items() if value.is_floating_point()]
    moved, error = (
        torch.stack([(a[name] - b[name]).double().norm() for name in floats])
        for a, b in ((last, first), (other, last))
    )
    print(f'error of the updates: {error.norm() / moved.norm():.1e}')
    assert (moved > 0).all()
    assert error.norm() < 1e-4 * moved.norm()
    assert (error < 1e-2 * moved).all()


@needs_two_gpus
def test_two_processes_train_as_one_with_all_images(few_steps, in_one_process):
    work_dir = few_steps('two', 2)
    assert_equal(*(torch.load(work_dir / f'rank_{rank}.pth') for rank in range(2)))
    assert_same_updates(work_dir, in_one_process)


@needs_two_gpus
def test_shards_train_as_one_process_with_all_images(few_steps, in_one_process):
    strategy = {
        'type': 'mmgcvit.FSDPStrategy',
        'model_wrapper': {'auto_wrap_policy': 'mmgcvit.wrap_blocks'},
        'state_dict_cfg': 'full',
    }
    runner = {'runner_type': 'FlexibleRunner', 'env_cfg': {'cudnn_benchmark': False}}
    work_dir = few_steps('shards', 2, strategy=strategy, **runner)
    assert_same_updates(work_dir, in_one_process)
    whole = int((in_one_process / 'rank_0.txt').read_text())
    parts = [int((work_dir / f'rank_{rank}.txt').read_text()) for rank in range(2)]
    assert whole <= sum(parts) < 1.01 * whole + 100 and max(parts) < 0.6 * whole


@needs_two_gpus
def test_sync_bn_has_the_statistics_of_all_images(few_steps):
    work_dir = few_steps('sync_bn', 2, batch_norm=True, sync_bn='torch')
    first, second = (torch.load(work_dir / f'rank_{rank}.pth') for rank in range(2))
    assert 'norm.running_var' in first
    assert_equal(first, second)
    if DEVICE == 'cuda':  # a CPU has BN, and AverageBatchNorm averages the statistics
        assert_same_updates(work_dir, few_steps('bn', batch_norm=True))
