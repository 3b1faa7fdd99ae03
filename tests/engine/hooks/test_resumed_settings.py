"""A training that is resumed with other settings: which count, and what the log says."""

import pytest
import tiny_training
from mmengine.config import Config
from mmengine.hooks import Hook

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import RehearseValidation, build_runner
from mmgcvit.weights import read_checkpoint

WARMUP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('settings') / 'shapes'
    draw_shapes(root, num_train=6, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


class Rates(Hook):
    """The learning rate of each iteration."""

    def __init__(self):
        self.rates = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.param_groups
        # the last group is mmengine's record of the base rate, if parameters have different ones
        self.rates[runner.iter] = groups[0]['lr']
        self.all = [group['lr'] for group in groups]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def train(images, work_dir, name, schedule, epochs=2, loop='epoch', hook=None, **options):
    work_dir.mkdir(exist_ok=True)
    path = tiny_training.config(images, work_dir / name, loop, 0)
    cfg = Config.fromfile(path)
    cfg.param_scheduler = schedule
    settings = {'train_cfg.max_epochs': epochs} if loop == 'epoch' else {}
    settings |= {
        'work_dir': str(work_dir),
        'experiment_name': f'{work_dir.name}_{name}',
        'custom_hooks': [],
    }
    cfg.merge_from_dict(settings | options)
    runner = build_runner(cfg)
    runner.register_hook(rates := Rates())
    if hook is not None:
        runner.register_hook(hook)
    runner.train()
    if 'optim_wrapper.paramwise_cfg' in options:
        return runner, rates.rates | {'all': rates.all}
    return runner, rates.rates


def warnings_of(folder):
    """Return the warnings of the training that was started last."""
    log = max(folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime)
    lines = [line for line in log.read_text().splitlines() if ' - WARNING - ' in line]
    return [line.partition(' - WARNING - ')[2] for line in lines]


def said(folder, text):
    return [line for line in warnings_of(folder) if text in line]


SCHEDULES = {
    'cosine': lambda end: dict(
        type='CosineAnnealingLR', by_epoch=True, begin=0, end=end, convert_to_iter_based=True
    ),
    'steps': lambda end: dict(type='MultiStepLR', by_epoch=True, milestones=[end - 1], gamma=0.1),
    'polynomial': lambda end: dict(type='PolyLR', by_epoch=False, begin=2, end=2 * end, power=2.0),
}


@pytest.mark.parametrize('kind', SCHEDULES)
def test_a_longer_schedule_counts_as_if_it_had_been_used_from_the_beginning(images, tmp_path, kind):
    schedule = SCHEDULES[kind]
    short, long = [WARMUP, schedule(2)], [WARMUP, schedule(4)]
    _, expected = train(images, tmp_path / 'whole', f'whole {kind}', long, epochs=4)
    train(images, tmp_path / 'work', f'short {kind}', short)
    runner, rates = train(images, tmp_path / 'work', f'long {kind}', long, epochs=4, resume='auto')
    assert list(rates) == [4, 5, 6, 7]
    assert rates == pytest.approx({i: expected[i] for i in rates})
    (line,) = said(tmp_path / 'work', 'the schedule has changed')
    assert "the config's is used from iteration 4 on" in line
    assert len(said(tmp_path / 'work', 'max_epochs is 4, but 2 in the checkpoint')) == 1
    states = [s.state_dict() for s in runner.param_schedulers]
    assert [s['_global_step'] for s in states] == [8 if not s['by_epoch'] else 4 for s in states]


def test_each_group_of_parameters_gets_its_own_rate(images, tmp_path):
    keys = {'head': dict(lr_mult=3.0), 'norm': dict(lr_mult=0.5)}
    options = {'optim_wrapper.paramwise_cfg': dict(custom_keys=keys)}
    schedule = SCHEDULES['cosine']
    _, expected = train(
        images, tmp_path / 'whole', 'groups', [WARMUP, schedule(4)], epochs=4, **options
    )
    train(images, tmp_path / 'work', 'groups1', [WARMUP, schedule(2)], **options)
    runner, rates = train(
        images,
        tmp_path / 'work',
        'groups2',
        [WARMUP, schedule(4)],
        epochs=4,
        resume='auto',
        **options,
    )
    assert len(set(rates['all'])) == 3 and len(rates['all']) > 100
    assert rates['all'] == pytest.approx(expected['all'])
    values = [group['lr'] for group in runner.optim_wrapper.param_groups]
    assert runner.param_schedulers[-1].get_last_value() == values


def test_the_same_settings_are_not_mentioned(images, tmp_path):
    schedule = [WARMUP, SCHEDULES['steps'](4)]
    train(images, tmp_path, 'first', schedule, epochs=4, **{'train_cfg.val_interval': 4})
    saved = read_checkpoint(tmp_path / 'epoch_3.pth')
    options = {'load_from': str(tmp_path / 'epoch_3.pth'), 'resume': True}
    train(images, tmp_path, 'second', schedule, epochs=4, **options)
    assert saved['meta']['iter'] == 6
    for text in ('schedule', 'checkpoint:', 'count'):
        assert not said(tmp_path, text)


def test_the_rate_of_the_checkpoint_counts_and_is_reported(images, tmp_path):
    _, first = train(images, tmp_path, 'rate1', [WARMUP])
    options = {'optim_wrapper.optimizer.lr': 0.5, 'optim_wrapper.optimizer.weight_decay': 0.3}
    _, rates = train(images, tmp_path, 'rate2', [WARMUP], epochs=3, resume='auto', **options)
    assert rates[4] == first[3] == pytest.approx(1e-2)
    (line,) = said(tmp_path, "the checkpoint's settings of the optimizer are used")
    assert 'lr 0.01 (config: 0.5)' in line and 'weight_decay 0.01 (config: 0.3)' in line


def test_a_schedule_on_a_metric_starts_without_the_past(images, tmp_path):
    plateau = dict(type='ReduceOnPlateauLR', monitor='cost', rule='less', patience=3)
    train(images, tmp_path, 'plateau1', [WARMUP])
    train(images, tmp_path, 'plateau2', [WARMUP, plateau], epochs=3, resume='auto')
    (line,) = said(tmp_path, 'the schedule has changed (2 schedulers, 1 in the checkpoint)')
    assert 'ReduceOnPlateauLR starts without the metrics of past validations' in line


@pytest.mark.parametrize(('batch', 'accumulated'), [(1, 1), (6, 1), (3, 2)])
def test_another_number_of_images_per_step_is_reported(images, tmp_path, batch, accumulated):
    """An epoch of 6 images in batches of 3, then of another size."""
    name = f'images {batch} {accumulated}'
    schedule = [SCHEDULES['cosine'](4)]
    train(images, tmp_path, name, schedule, **{'train_cfg.val_interval': 9})
    options = {'optim_wrapper.accumulative_counts': accumulated}
    options |= {'train_dataloader.batch_size': batch, 'train_cfg.val_interval': 9}
    runner, rates = train(
        images, tmp_path, f'{name} now', schedule, epochs=4, resume='auto', **options
    )
    (line,) = said(tmp_path, 'images per step')
    assert line.startswith(
        f'images per step: {batch * accumulated} (1 process × batch size {batch}'
    )
    assert 'but 3 (1 process × batch size 3) in the checkpoint' in line
    length = 6 // batch
    # epochs 3 and 4, and the rates of their parts of the schedule
    assert list(rates) == list(range(2 * length, 4 * length))
    assert runner.iter == runner.max_iters == 4 * length
    _, whole = train(images, tmp_path / 'w', f'{name} w', schedule, epochs=4, **options)
    assert rates == pytest.approx({i: whole[i] for i in rates})


@pytest.mark.parametrize('keep', [True, False])
def test_the_average_of_a_hook_that_was_removed_is_reported(images, tmp_path, keep):
    average = [dict(type='EMAHook')]
    train(images, tmp_path, 'first', [], epochs=1, custom_hooks=average)
    hooks = average if keep else []
    train(images, tmp_path, 'second', [], resume=True, custom_hooks=hooks)
    lines = [line for line in warnings_of(tmp_path) if 'averaged weights' in line]
    assert len(lines) == (not keep)


def test_a_finished_training_says_what_to_change(images, tmp_path):
    train(images, tmp_path, 'finished', [WARMUP])
    _, rates = train(images, tmp_path, 'again', [WARMUP], resume='auto')
    assert rates == {}
    (line,) = said(tmp_path, 'nothing is left to train')
    assert 'the checkpoint is at epoch 2, and train_cfg.max_epochs is 2; to train longer' in line


@pytest.mark.parametrize('settings', [{}, {'epochs': 1}, {'stopped': True}])
def test_nothing_is_rehearsed_if_nothing_is_left(images, tmp_path, log, settings):
    settings = dict(settings)
    early = dict(type='EarlyStoppingHook', monitor='cost', rule='less', patience=0, min_delta=9.0)
    epochs, options = 2, {}
    if settings.pop('stopped', False):
        epochs, options = 3, {'custom_hooks': [early]}
    schedule = [SCHEDULES['cosine'](2)]
    train(images, tmp_path, 'finished', schedule, epochs=epochs, **options)
    log.clear()
    again = dict(epochs=epochs) | settings
    hook = RehearseValidation()
    _, rates = train(
        images, tmp_path, 'again', schedule, resume='auto', hook=hook, **again, **options
    )
    assert rates == {}
    lines = [line for line in log if 'nothing is left to train' in line or 'stopped early' in line]
    assert len(lines) == 1
    others = ('rehearsed the validation', 'training ends at', 'the schedule has changed')
    assert not [line for line in log if any(text in line for text in others)]


def test_iterations_are_compared_too(images, tmp_path):
    train(images, tmp_path, 'iter1', [WARMUP], loop='iter', **{'train_cfg.max_iters': 4})
    options = {'train_cfg.max_iters': 6, 'resume': 'auto'}
    _, rates = train(images, tmp_path, 'iter2', [WARMUP], loop='iter', **options)
    assert list(rates) == [4, 5]
    assert said(tmp_path, 'train_cfg.max_iters is 6, but 4 in the checkpoint')
    train(images, tmp_path, 'iter3', [WARMUP], loop='iter', **options)
    assert said(tmp_path, 'the checkpoint is at iter 6, and train_cfg.max_iters is 6')
