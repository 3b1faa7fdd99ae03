"""Two batches of validation before a training: what they find, and that they change nothing."""

import copy
import random
from typing import ClassVar

import forks
import numpy as np
import pytest
import tiny_training
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from torch import nn

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import RehearseValidation, build_runner
from mmgcvit.engine.rehearsal.validation import all_scores
from mmgcvit.errors import UserError
from mmgcvit.weights import read_checkpoint

CONFIGS = forks.ROOT / 'tests' / 'data' / 'configs'


@METRICS.register_module(force=True)
class FailingMetric(BaseMetric):
    """Fails in one of its methods, or gives metrics with these names."""

    def __init__(self, fails='', names=()):
        super().__init__()
        self.fails, self.names = fails, names

    def process(self, data_batch, data_samples):
        if self.fails == 'process':
            raise KeyError('gt_sem_seg')
        self.results += data_samples

    def compute_metrics(self, results):
        if self.fails == 'compute_metrics':
            raise IndexError('no class 7')
        return dict.fromkeys(self.names, 0.5)


@METRICS.register_module(force=True)
class CountingMetric(tiny_training.TinyMetric):
    """Notes how many images each validation has."""

    numbers: ClassVar[list[int]] = []

    seen = 0

    def process(self, data_batch, data_samples):
        self.seen += len(data_batch['label'])
        super().process(data_batch, data_samples)

    def compute_metrics(self, results):
        self.numbers.append(self.seen)
        return super().compute_metrics(results)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('rehearsal') / 'shapes'
    draw_shapes(root, num_train=12, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


@pytest.fixture
def train(images, tmp_path):
    """Train with the rehearsal, and return the runner."""

    def train(loop='epoch', rehearse=True, change=lambda cfg: None, **settings):
        tmp_path.mkdir(exist_ok=True)
        path = tiny_training.config(images, tmp_path / 'work', loop, 0, **settings)
        cfg = Config.fromfile(path)
        cfg.experiment_name = f'{tmp_path.name}_{loop}_{rehearse}'
        change(cfg)
        runner = build_runner(cfg)
        if rehearse:
            runner.register_hook(RehearseValidation())
        runner.train()
        return runner

    return train


def hooks(**settings):
    checkpoint = dict(type='CheckpointHook', interval=1, **settings)
    return dict(default_hooks=dict(checkpoint=checkpoint, logger=dict(type='LoggerHook')))


EARLY = dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor='accuracy/top1')])
PLATEAU = dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='costs', rule='less')])


@pytest.mark.parametrize(
    ('settings', 'option', 'name'),
    [
        (hooks(save_best='loss_val'), 'default_hooks.checkpoint.save_best', 'loss_val'),
        (hooks(save_best=['loss_a', 'cost'], rule='less'), 'checkpoint.save_best', 'loss_a'),
        (EARLY, 'custom_hooks.0.monitor', 'accuracy/top1'),
        (PLATEAU, 'param_scheduler.0.monitor', 'costs'),
    ],
)
def test_metric_that_is_not_computed_is_named_before_training(train, settings, option, name):
    with pytest.raises(UserError) as found:
        train(**settings)
    text = str(found.value)
    assert f'{option} is {name!r}, which the validation does not compute' in text
    near = f' (for example {option}=cost)' if name == 'costs' else ''
    assert f'set it to one of cost{near}, or' in text and text.endswith('without this check')


@pytest.mark.parametrize('settings', [hooks(save_best='cost', rule='less'), {}])
def test_metric_that_is_computed_is_not_mentioned(train, log, settings):
    assert train(**settings).epoch == 3
    (line,) = (line for line in log if 'rehearse' in line)
    assert line.startswith('rehearsed the validation with 2 batches')


@pytest.mark.parametrize(
    ('batch_size', 'batches', 'number'),
    [(5, '2 batches', 10), (8, '2 batches', 12), (15, '1 batch', 12)],
)
def test_no_image_is_validated_twice(train, log, batch_size, batches, number):
    def change(cfg):
        cfg.val_dataloader.batch_size = batch_size
        cfg.val_evaluator = dict(type='CountingMetric')

    CountingMetric.numbers.clear()
    train(change=change)
    assert CountingMetric.numbers[0] == number
    (line,) = (line for line in log if 'rehearse' in line)
    assert line.startswith(f'rehearsed the validation with {batches} (')


def test_rule_of_auto_is_checked(train):
    with pytest.raises(UserError, match=r"'auto', which means 'cost'.*checkpoint\.rule=greater"):
        train(**hooks(save_best='auto'))


@pytest.mark.parametrize(
    ('fails', 'text'),
    [
        ('process', r"KeyError: 'gt_sem_seg', .*test_validation.py:\d+\): the pipeline packs no"),
        ('compute_metrics', r'IndexError: no class 7, .*correct val_dataloader, val_evaluator'),
    ],
)
def test_failing_evaluator_is_an_error(train, fails, text):
    with pytest.raises(UserError, match=text):
        train(val_evaluator=dict(type='FailingMetric', fails=fails), **hooks())


def test_failing_item_of_the_validation_is_named(train, images):
    with pytest.raises(UserError, match=r'the validation fails \(.*missing'):
        train(
            val_dataloader=dict(
                dataset=dict(
                    type='TinyImages', folder=str(images), augment=False, reads='/missing/f'
                ),
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
                batch_size=4,
            )
        )


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        (dict(val_dataloader=None, val_cfg=None, val_evaluator=None), 'no val_dataloader'),
        (dict(val_evaluator=dict(type='FailingMetric')), 'detected nothing'),
    ],
)
def test_what_was_not_rehearsed_is_logged(train, log, settings, reason):
    train(**settings, **hooks(save_best=None))
    (line,) = (line for line in log if line.startswith('not rehearsed'))
    assert reason in line


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_training_with_and_without_it_ends_in_the_same_weights(train, loop):
    """Drop path, dropout, batch norm, EMA and augmentation draw from every generator."""
    states = []
    for rehearse in (True, False):
        runner = train(loop, rehearse)
        states.append(
            (
                copy.deepcopy(runner.model.state_dict()),
                copy.deepcopy(runner.message_hub.get_scalar('val/cost').data),
            )
        )
    for name, value in states[0][0].items():
        assert torch.equal(value, states[1][0][name]), name
    assert np.array_equal(states[0][1], states[1][1])


class Snapshot(Hook):
    """Records what the rehearsal may not change."""

    def __init__(self, priority):
        self._priority = priority
        self.seen = None

    def before_train(self, runner):
        metric = runner.val_loop.evaluator.metrics[0]
        self.seen = dict(
            python=random.getstate(),
            numpy=np.random.get_state()[1].tolist(),
            torch=torch.get_rng_state().tolist(),
            modes=[module.training for module in runner.model.modules()],
            metric={name: str(value) for name, value in vars(metric).items()},
            hub=str(runner.message_hub.state_dict()),
            loop=str(vars(runner.val_loop)),
            visualizer=str(vars(runner.visualizer)),
        )


def test_nothing_is_changed(images, tmp_path):
    cfg = Config.fromfile(tiny_training.config(images, tmp_path / 'work', 'epoch', 0))
    cfg.experiment_name = tmp_path.name
    runner = build_runner(cfg)
    snapshots = [Snapshot(priority) for priority in ('ABOVE_NORMAL', 'BELOW_NORMAL')]
    for snapshot in snapshots:
        runner.register_hook(snapshot, priority=snapshot._priority)
    runner.register_hook(RehearseValidation())
    runner.model.backbone.eval()  # as frozen stages are
    runner.train()
    assert snapshots[0].seen['modes'].count(False) > 10
    for name, value in snapshots[0].seen.items():
        assert snapshots[1].seen[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'ranks'),
    [
        ('mask_rcnn_tiny', 1),
        ('upernet_tiny', 2),
        pytest.param('mask_rcnn_tiny', 2, marks=pytest.mark.nightly),
        pytest.param('upernet_tiny', 1, marks=pytest.mark.nightly),
    ],
)
def test_training_with_and_without_the_option(tmp_path, images, name, ranks):
    """Detection and segmentation; with the rehearsal in two parts, of which one is resumed."""
    shapes = str(images.parents[1])
    ends = dict(mask_rcnn_tiny=('max_epochs', 1, 'epoch_{}.pth'), upernet_tiny=('max_iters', 4, ''))
    key, half, file = ends[name]
    file = file or 'iter_{}.pth'
    states = []
    for option, parts in (('--no-rehearsal', (2 * half,)), ('', (half, 2 * half))):
        work_dir = tmp_path / f'work{option}'
        for end in parts:
            settings = [f'train_cfg.{key}={end}', f'default_hooks.checkpoint.interval={half}']
            code, printed = forks.run(
                *('tools/train.py', CONFIGS / f'{name}.py', '--work-dir', work_dir, '--resume'),
                *filter(None, [option]),
                *(['--launcher', 'pytorch'] if ranks > 1 else []),
                *('--cfg-options', *settings),
                out=tmp_path / 'printed',
                ranks=ranks,
                SHAPES=shapes,
            )
            assert code == 0, printed[-3000:]
            assert ('rehearsed the validation' in printed) is (option == '')
        states.append(read_checkpoint(work_dir / file.format(2 * half)))
    assert states[0]['state_dict'].keys() == states[1]['state_dict'].keys()
    for part, value in states[0]['state_dict'].items():
        assert torch.equal(value, states[1]['state_dict'][part]), part


def test_score_thresholds_are_restored():
    settings = ConfigDict(rcnn=dict(score_thr=0.05, nms=dict(type='nms')), score_thr=0.3)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[0].test_cfg, model[1].test_cfg = settings, settings.rcnn  # as mmdet shares them
    with all_scores(model):
        assert settings.score_thr == settings.rcnn.score_thr == 0
    assert settings.score_thr == 0.3 and settings.rcnn.score_thr == 0.05
