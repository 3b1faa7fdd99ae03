"""A training that receives SIGTERM saves a checkpoint, ends with code 75 and can be resumed."""

import os
import re
import signal
import time

import forks
import pytest
import tiny_training
from mmengine.config import Config
from mmengine.hooks import Hook

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import build_runner
from mmgcvit.engine.hooks import exact_resume, stop_on_sigterm
from mmgcvit.weights import read_checkpoint


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('sigterm') / 'shapes'
    draw_shapes(root, num_train=12, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


@pytest.fixture(autouse=True)
def default_action():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Send(Hook):
    """Send SIGTERM to this process in one iteration of the training or the validation."""

    def __init__(self, iteration=None, validation=None):
        self.iteration, self.validation = iteration, validation
        self.images = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.images += data_batch['image'].sum((1, 2, 3)).tolist()
        self.last = runner.epoch, batch_idx
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.validation and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def runner_of(images, work_dir, name, loop, hook, **options):
    path = tiny_training.config(images, work_dir / name, loop, 0)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {'work_dir': str(work_dir), 'experiment_name': f'{work_dir.name}_{name}', **options}
    )
    runner = build_runner(cfg)
    runner.register_hook(hook)
    return runner


def stop(*args, **options):
    with pytest.raises(SystemExit) as stopped:
        runner_of(*args, **options).train()
    assert stopped.value.code == stop_on_sigterm.EXIT_CODE == 75
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the process would have ended


def names(folder):
    return {path.name for path in folder.glob('*.pth')}


def logged(folder):
    return '\n'.join(log.read_text() for log in sorted(folder.glob('*/*.log')))


def test_an_epoch_continues_with_the_images_that_are_left(images, tmp_path):
    options = {
        'train_dataloader.dataset.augment': False,
        'default_hooks.checkpoint.save_best': None,
    }
    stop(images, tmp_path, 'stopped', 'epoch', first := Send(6), **options)
    assert names(tmp_path) == {'epoch_1.pth', 'iter_6.pth'}
    assert 'stopped by SIGTERM after iteration 6; --resume continues' in logged(tmp_path)
    runner = runner_of(
        images, tmp_path, 'resumed', 'epoch', second := Send(), resume='auto', **options
    )
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 12)
    assert names(tmp_path) == {'epoch_2.pth', 'epoch_3.pth'}
    assert 'resuming epoch 2 after 2 of 4 iterations: not exact' in logged(tmp_path)
    assert logged(tmp_path).count('random numbers differ') == 1
    assert 'Epoch(train) [2][3/4]' in logged(tmp_path)
    assert second.last == (2, 3)
    # each epoch has each of the 12 images once
    seen = first.images + second.images
    assert set(seen[:12]) == set(seen[12:24]) == set(seen[24:]) and len(set(seen)) == 12


def test_at_the_end_of_an_epoch_its_checkpoint_suffices(images, tmp_path):
    stop(images, tmp_path, 'stopped', 'epoch', Send(4))
    assert names(tmp_path) == {'epoch_1.pth'}
    runner_of(images, tmp_path, 'resumed', 'epoch', Send(), resume='auto').train()
    log = logged(tmp_path)
    assert 'validation after iteration 4 was not finished: repeating it now' in log
    assert 'not exact' not in log and 'will not be exact' not in log


def test_iterations_continue_and_the_log_says_what_differs(images, tmp_path):
    stop(images, tmp_path, 'stopped', 'iter', Send(5))
    assert names(tmp_path) == {'iter_4.pth', 'iter_5.pth', 'best_cost_iter_3.pth'}
    runner_of(images, tmp_path, 'resumed', 'iter', Send(), resume='auto').train()
    assert 'will not be exact: SIGTERM saved the checkpoint' in logged(tmp_path)
    assert {'iter_8.pth', 'iter_12.pth'} <= names(tmp_path)
    assert 'iter_5.pth' not in names(tmp_path)
    assert read_checkpoint(tmp_path / 'iter_12.pth')['meta']['iter'] == 12


def test_with_accumulation_the_next_update_is_awaited(images, tmp_path):
    options = {'optim_wrapper.accumulative_counts': 3}
    stop(images, tmp_path, 'stopped', 'iter', Send(7), **options)
    assert 'iter_9.pth' in names(tmp_path)


def test_a_validation_is_left_at_once_and_repeated(images, tmp_path):
    stop(images, tmp_path, 'stopped', 'epoch', Send(validation=8))
    line = 'stopped by SIGTERM in the validation after iteration 8. The weights are saved, and'
    assert line in logged(tmp_path)
    assert 'epoch_2.pth' in names(tmp_path)
    assert (tmp_path / 'unfinished_validation').read_text() == '8'
    stop(images, tmp_path, 'again', 'epoch', Send(validation=8), resume='auto')
    runner_of(images, tmp_path, 'resumed', 'epoch', Send(), resume='auto').train()
    assert logged(tmp_path).count('repeating it now') == 2
    assert not (tmp_path / 'unfinished_validation').exists()


def test_a_validation_of_weights_that_are_not_saved_is_completed(images, tmp_path):
    """Otherwise all epochs since the last checkpoint would be lost."""
    options = {'default_hooks.checkpoint.interval': 3, 'default_hooks.checkpoint.save_best': None}
    stop(images, tmp_path, 'stopped', 'epoch', Send(validation=8), **options)
    assert names(tmp_path) == {'iter_9.pth'}
    assert 'stopped by SIGTERM after iteration 9; --resume continues' in logged(tmp_path)
    assert not (tmp_path / 'unfinished_validation').exists()


def test_a_signal_that_a_launcher_forwards_is_not_a_second_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    ended = []
    monkeypatch.setattr(os, 'kill', lambda *arguments: ended.append(arguments))
    hook = stop_on_sigterm.StopOnSigtermHook()
    hook._handle(signal.SIGTERM, None)
    now[0] += 1
    hook._handle(signal.SIGTERM, None)
    assert ended == []
    now[0] += 10
    hook._handle(signal.SIGTERM, None)
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_after_the_checkpoint_does_not_change_the_exit_code(images, tmp_path, monkeypatch):
    """As srun sends one when another process has ended, however long the checkpoint took."""
    monkeypatch.setattr(stop_on_sigterm, 'REPEATED', -1.0)
    ended = []
    runner = runner_of(images, tmp_path, 'late', 'epoch', Send(2))
    monkeypatch.setattr(runner.visualizer, 'close', lambda: signal.raise_signal(signal.SIGTERM))
    original = os.kill
    monkeypatch.setattr(os, 'kill', lambda *a: ended.append(a) if runner.iter > 1 else original(*a))
    with pytest.raises(SystemExit, match='75'):
        runner.train()
    assert ended == []


def test_a_training_after_one_that_failed_is_stopped_too(images, tmp_path):
    class Fail(Send):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runner_of(images, tmp_path, 'failed', 'epoch', Fail()).train()
    stop(images, tmp_path, 'after it', 'epoch', Send(2))


def test_a_handler_of_the_program_is_kept(images, tmp_path):
    received = []
    signal.signal(signal.SIGTERM, lambda *arguments: received.append(arguments))
    options = {'train_cfg.max_epochs': 1}
    runner_of(images, tmp_path, 'own', 'epoch', Send(2), **options).train()
    assert len(received) == 1


@pytest.mark.parametrize(
    ('loop', 'ranks'), [('epoch', 1), pytest.param('iter', 2, marks=pytest.mark.slow)]
)
def test_all_processes_with_workers_end_with_that_code(images, tmp_path, loop, ranks):
    """The signal reaches every process of the training, the data workers too, as Slurm's does."""
    path = tiny_training.config(images, tmp_path / 'work', loop, 2)
    command = ['tools/train.py', path, *(['--launcher', 'pytorch'] if ranks > 1 else [])]
    out = tmp_path / 'out'
    running = forks.Fork(*command, out=out, ranks=ranks)
    deadline = time.monotonic() + 120
    # in the middle of an epoch: with two processes, one has two iterations
    shown = r'Iter\(train\) \[ *5/' if loop == 'iter' else r'Epoch\(train\) +\[2\]\[1/'
    while not re.search(shown, out.read_text()):
        assert running.poll() is None and time.monotonic() < deadline, out.read_text()[-3000:]
        time.sleep(0.005)
    running.signal(signal.SIGTERM)
    assert running.wait(60) == 75, out.read_text()[-3000:]
    printed = out.read_text()
    assert printed.count('stopped by SIGTERM') == 1 and 'Traceback' not in printed
    code, printed = forks.run(*command, '--resume', out=out, ranks=ranks)
    assert code == 0, printed[-3000:]
    last = 'iter_12.pth' if loop == 'iter' else 'epoch_3.pth'
    assert read_checkpoint(tmp_path / 'work' / last)['meta']['iter'] == 12


def test_a_worker_that_has_just_started_does_not_end(images, tmp_path, monkeypatch):
    """The signal is blocked before the worker can do so itself, and not in the training."""

    def check():
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())

    monkeypatch.setattr(exact_resume, 'ignore_sigterm_of_others', check)
    monkeypatch.setattr(stop_on_sigterm, 'ignore_sigterm_of_others', check)
    workers = ('train_dataloader.num_workers', 'val_dataloader.num_workers')
    options = {'train_cfg.max_epochs': 1} | dict.fromkeys(workers, 1)
    runner_of(images, tmp_path, 'begins', 'epoch', Send(), **options).train()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
