"""Early stopping, schedules on metrics and hooks with state: a kill loses and repeats nothing."""

import pytest
import tiny_training
import torch
from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.registry import HOOKS

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import SafeCheckpointHook, build_runner, record_failed_step
from mmgcvit.engine.hooks import checkpoint as checkpoints
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.weights import read_checkpoint

STOPPING = dict(type='EarlyStoppingHook', monitor='cost', rule='less', min_delta=9.0, patience=2)
PLATEAU = dict(
    type='ReduceOnPlateauLR', monitor='cost', rule='less', threshold=0.9, patience=0, factor=0.5
)


@HOOKS.register_module(force=True)
class Counting(Hook):
    """Counts iterations and validations, as a user's hook may do."""

    def __init__(self):
        self.iterations = 0
        self.validations = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.iterations += 1

    def after_val_epoch(self, runner, metrics=None):
        self.validations += 1


@HOOKS.register_module(force=True)
class SavedCounting(Counting):
    def state_dict(self):
        return {'iterations': self.iterations, 'validations': self.validations}

    def load_state_dict(self, state):
        self.iterations, self.validations = state['iterations'], state['validations']


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('validated') / 'shapes'
    draw_shapes(root, num_train=6, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


def runner_of(images, work_dir, name, hooks=(STOPPING, dict(type='SavedCounting')), **options):
    settings = {'custom_hooks': list(hooks)}
    path = tiny_training.config(images, work_dir / name, 'epoch', 0, **settings)
    cfg = Config.fromfile(path)
    cfg.param_scheduler = [cfg.param_scheduler[0], dict(PLATEAU)]
    cfg.merge_from_dict({'work_dir': str(work_dir), 'experiment_name': f'{work_dir.name}_{name}'})
    cfg.merge_from_dict({'train_cfg.max_epochs': 5, 'param_scheduler.0.T_max': 10, **options})
    return build_runner(cfg)


def logged(folder):
    return '\n'.join(log.read_text() for log in sorted(folder.glob('*/*.log')))


def names(folder):
    return {path.name for path in folder.glob('*.pth')}


@pytest.fixture(scope='module')
def whole(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    runner_of(images, folder, 'whole').train()
    return folder


def assert_equal(found, expected):
    """Compare two trainings that early stopping ended after epoch 3."""
    assert names(found) == names(expected)
    pair = [read_checkpoint(folder / 'epoch_3.pth') for folder in (found, expected)]
    for name, tensor in pair[1]['state_dict'].items():
        assert torch.equal(pair[0]['state_dict'][name], tensor), name
    assert pair[0]['param_schedulers'] == pair[1]['param_schedulers']
    for name in ('ResumableEarlyStoppingHook', 'SavedCounting'):
        assert pair[0]['hooks'][name] == pair[1]['hooks'][name]


def test_an_uninterrupted_training_saves_what_its_validations_changed(whole):
    assert names(whole) == {'epoch_2.pth', 'epoch_3.pth', 'best_cost_epoch_3.pth'} or (
        'epoch_3.pth' in names(whole) and 'epoch_4.pth' not in names(whole)
    )
    saved = read_checkpoint(whole / 'epoch_3.pth')
    assert saved['hooks']['ResumableEarlyStoppingHook'][0]['stopped'] is True
    assert saved['hooks']['ResumableEarlyStoppingHook'][0]['wait_count'] == 2
    assert saved['hooks']['SavedCounting'] == [{'iterations': 6, 'validations': 3}]
    # the first validation sets the score, the two after it are no improvement
    assert saved['param_schedulers'][1]['last_step'] == 2
    rates = [group['lr'] for group in saved['optimizer']['param_groups']]
    assert saved['param_schedulers'][1]['_last_value'][0] == rates[0]


class Killed(BaseException):
    """Not caught by anything, as a kill."""


def kill(patch, point, epoch):
    """Have the training end at a point of the validation of one epoch."""

    def replace(owner, name, when):
        original = getattr(owner, name)

        def method(self, runner, *args, **kwargs):
            is_epoch = runner.epoch == epoch
            if is_epoch and when == 'before':
                raise Killed
            original(self, runner, *args, **kwargs)
            if is_epoch:
                raise Killed

        patch.setattr(owner, name, method)

    if point == 'in the validation':
        replace(SafeCheckpointHook, 'before_val_epoch', 'after')
    elif point == 'after early stopping has counted':
        replace(EarlyStoppingHook, 'after_val_epoch', 'after')
    elif point == 'before the checkpoint is saved again':
        replace(SafeCheckpointHook, 'after_val', 'before')
    elif point == 'before the mark is removed':
        write = SafeCheckpointHook._write_checkpoint

        def write_checkpoint(self, runner, path, meta, validated=False):
            write(self, runner, path, meta, validated)
            if validated and runner.epoch == epoch:
                raise Killed

        patch.setattr(SafeCheckpointHook, '_write_checkpoint', write_checkpoint)
    elif point == 'after the mark is removed':
        replace(SafeCheckpointHook, 'after_val', 'after')
    else:
        name = {
            'while the best is written': f'best_cost_epoch_{epoch}.pth',
            'while the checkpoint is written': f'epoch_{epoch}.pth',
        }[point]

        def write_file(path, content):
            if path.name == name:
                raise Killed
            return write_atomically(path, content)

        patch.setattr(checkpoints, 'write_atomically', write_file)


@pytest.mark.parametrize('epoch', [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    'point',
    [
        'in the validation',
        'after early stopping has counted',
        'before the checkpoint is saved again',
        'before the mark is removed',
        'after the mark is removed',
        'while the best is written',
        'while the checkpoint is written',
    ],
)
def test_a_kill_neither_loses_nor_repeats_a_validation(
    images, tmp_path, whole, monkeypatch, point, epoch
):
    """In the first validation, and in the one after which early stopping ends the training."""
    if point == 'while the best is written' and f'best_cost_epoch_{epoch}.pth' not in names(whole):
        epoch = 1
    with monkeypatch.context() as patch:
        kill(patch, point, epoch)
        with pytest.raises(Killed):
            runner_of(images, tmp_path, f'killed {point}').train()
    runner_of(images, tmp_path, f'resumed {point}', resume='auto').train()
    assert_equal(tmp_path, whole)
    # a training that early stopping has ended stays so
    runner_of(images, tmp_path, f'again {point}', resume='auto').train()
    assert_equal(tmp_path, whole)
    assert 'was stopped early after iteration 6' in logged(tmp_path)
    assert not (tmp_path / 'unfinished_validation').exists()


def test_an_outdated_best_checkpoint_that_a_kill_left_is_removed(images, tmp_path, monkeypatch):
    costs = iter([0.9, 0.5, 0.7])
    monkeypatch.setattr(
        tiny_training.TinyMetric, 'compute_metrics', lambda *_: {'cost': next(costs)}
    )
    remove = SafeCheckpointHook._remove

    def killed(self, path):
        if 'best' in path:
            raise Killed
        remove(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(SafeCheckpointHook, '_remove', killed)
        with pytest.raises(Killed):
            runner_of(images, tmp_path, 'killed best', hooks=()).train()
    assert {'best_cost_epoch_1.pth', 'best_cost_epoch_2.pth'} <= names(tmp_path)
    runner_of(
        images, tmp_path, 'resumed best', hooks=(), resume='auto', **{'train_cfg.max_epochs': 3}
    ).train()
    assert names(tmp_path) == {'epoch_2.pth', 'epoch_3.pth', 'best_cost_epoch_2.pth'}


def test_more_patience_continues_a_stopped_training(images, tmp_path):
    runner_of(images, tmp_path, 'patience2').train()
    runner = runner_of(
        images, tmp_path, 'patience3', hooks=[STOPPING | {'patience': 3}], resume='auto'
    )
    runner.train()
    assert runner.epoch == 4


def test_another_metric_counts_from_zero(images, tmp_path):
    runner_of(images, tmp_path, 'metric1').train()
    other = STOPPING | {'monitor': 'other cost'}
    runner = runner_of(images, tmp_path, 'metric2', hooks=[other], resume='auto')
    runner.train()
    assert runner.epoch == 5
    assert 'monitors other cost (less), but in the checkpoint cost (less)' in logged(tmp_path)


def test_a_hook_without_state_is_named_once(images, tmp_path):
    options = {'train_cfg.max_epochs': 3}
    runner_of(images, tmp_path, 'unknown', hooks=[dict(type='Counting')], **options).train()
    assert logged(tmp_path).count('may not be exact: Counting changes its iterations') == 1


def test_a_checkpoint_without_these_states_is_named(images, tmp_path):
    runner_of(images, tmp_path, 'old1', **{'train_cfg.max_epochs': 1}).train()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    del saved['hooks']
    torch.save(saved, tmp_path / 'epoch_1.pth')
    runner_of(images, tmp_path, 'old2', resume='auto', **{'train_cfg.max_epochs': 2}).train()
    line = 'of SavedCounting, ResumableEarlyStoppingHook, ReduceOnPlateauLR'
    log = logged(tmp_path)
    assert log.count('the checkpoint does not contain the current state') == 1
    for name in line.removeprefix('of ').split(', '):
        assert name in log.partition('the current state of ')[2].partition('\n')[0]


def test_a_validation_that_fails_again_says_how_to_continue(images, tmp_path, monkeypatch):
    def fail(self, results):
        raise IndexError('no boxes')

    with monkeypatch.context() as patch:
        patch.setattr(tiny_training.TinyMetric, 'compute_metrics', fail)
        with pytest.raises(IndexError):
            runner_of(images, tmp_path, 'fails1').train()
        error = 'validation after iteration 2 .*IndexError: no boxes'
        with pytest.raises(UserError, match=error) as e:
            runner_of(images, tmp_path, 'fails2', resume='auto').train()
        mark = tmp_path / 'unfinished_validation'
        assert f'skip this validation: delete {mark}, then --resume' in str(e.value)
        mark.unlink()
    runner_of(images, tmp_path, 'skips', resume='auto').train()
    assert 'epoch_3.pth' in names(tmp_path)


@pytest.mark.parametrize(
    ('interval', 'said'),
    [
        (1, r'The weights are saved, and --resume repeats the validation.*or skip this validation'),
        (3, r'There is no checkpoint yet\..*then --resume$'),
    ],
)
def test_a_validation_that_fails_first_says_what_is_saved(
    images, tmp_path, monkeypatch, interval, said
):
    def fail(self, results):
        raise IndexError('no boxes')

    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', fail)
    options = {'default_hooks.checkpoint.interval': interval}
    runner = runner_of(images, tmp_path, 'first', **options)
    error = f'the validation after iteration 2 failed: IndexError: no boxes.*{said}'
    with pytest.raises(UserError, match=error), record_failed_step(runner):
        runner.train()
    assert names(tmp_path) == ({'epoch_1.pth'} if interval == 1 else set())


def test_a_validation_after_the_last_checkpoint_says_where_a_resume_begins(
    images, tmp_path, monkeypatch
):
    def fail(self, results):
        raise UserError('no boxes.')

    runner_of(images, tmp_path, 'before', **{'train_cfg.max_epochs': 1}).train()
    monkeypatch.setattr(tiny_training.TinyMetric, 'compute_metrics', fail)
    options = {'default_hooks.checkpoint.interval': 3}
    runner = runner_of(images, tmp_path, 'after', resume='auto', **options)
    error = 'failed: no boxes. The last checkpoint is of iteration 2, and --resume continues'
    with pytest.raises(UserError, match=error), record_failed_step(runner):
        runner.train()


def test_a_best_metric_that_is_not_computed_is_an_error(images, tmp_path):
    options = {'default_hooks.checkpoint.save_best': 'mIoU'}
    with pytest.raises(UserError, match='save_best is mIoU, and the validation computes cost: set'):
        runner_of(images, tmp_path, 'name', **options).train()
    runner_of(images, tmp_path, 'right', resume='auto').train()
    assert 'epoch_3.pth' in names(tmp_path)
