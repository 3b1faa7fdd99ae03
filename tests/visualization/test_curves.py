"""Reading and plotting of the scalars that mmengine logs."""

import json
import math
import os
from pathlib import Path

import cv2
import pytest

from mmgcvit.errors import UserError
from mmgcvit.visualization import TrainingLog, plot_training_curves, read_training_log
from mmgcvit.visualization import curves as module


def _train(iteration, loss, epoch=None):
    record = {'lr': 1e-3, 'loss': loss, 'loss_cls': loss / 2, 'time': 0.5, 'data_time': 0.1}
    if epoch is not None:
        record['epoch'] = epoch
    return {**record, 'iter': iteration, 'step': iteration}


def _val(step, value, name='coco/segm_mAP_50'):
    return {name: value, 'data_time': 0.1, 'time': 0.2, 'step': step}


def _write(work_dir, stamp, records):
    file = work_dir / stamp / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return file


@pytest.fixture
def by_epoch(tmp_path):
    """Two epochs of 25 iterations. Every 10th iteration is logged, so the last ones are not."""
    work_dir = tmp_path / 'run'
    records = [_train(10, 3.0, 1), _train(20, 2.0, 1), _val(1, 0.1)]
    records += [_train(35, 1.5, 2), _train(45, 1.0, 2), _val(2, 0.4)]
    _write(work_dir, '20260101_000000', records)
    return work_dir


# Reading


def test_epochs_are_assigned_to_their_last_iteration(by_epoch):
    log = read_training_log(by_epoch)
    assert log.name == 'run'
    assert log.loss == {10: 3.0, 20: 2.0, 35: 1.5, 45: 1.0}
    assert log.metrics == {'coco/segm_mAP_50': {25: 0.1, 50: 0.4}}


def test_a_single_epoch_ends_at_its_last_logged_iteration(tmp_path):
    _write(tmp_path, '1', [_train(10, 3.0, 1), _train(20, 2.0, 1), _val(1, 0.1)])
    assert read_training_log(tmp_path).metrics == {'coco/segm_mAP_50': {20: 0.1}}


@pytest.mark.parametrize('epoch', [None, 1])
def test_iterations_are_unchanged(tmp_path, epoch):
    records = [_train(10, 3.0, epoch), _val(15, 20.0, 'mIoU'), _train(20, 2.0, epoch)]
    records += [_train(30, 1.0, epoch), _val(30, 50.0, 'mIoU')]
    _write(tmp_path, '1', records)
    assert read_training_log(tmp_path).metrics == {'mIoU': {15: 20.0, 30: 50.0}}


def test_a_validation_before_the_first_logged_loss(tmp_path):
    _write(tmp_path, '1', [_val(5, 0.1), _train(10, 3.0)])
    assert read_training_log(tmp_path).metrics == {'coco/segm_mAP_50': {5: 0.1}}


def test_epochs_counted_in_an_iteration_based_loop(tmp_path):
    # with log_metric_by_epoch=True, such a loop counts unfinished passes over the data
    _write(tmp_path, '1', [_train(100, 3.0, 3), _val(2, 0.1), _train(200, 2.0, 5), _val(4, 0.2)])
    assert read_training_log(tmp_path).metrics == {'coco/segm_mAP_50': {100: 0.1, 200: 0.2}}


def test_resumed_run_overrides_repeated_iterations(by_epoch):
    # resumed after epoch 1, so the first run's records of epoch 2 are obsolete
    records = [_train(35, 1.4, 2), _train(45, 0.9, 2), _val(2, 0.5), _train(60, 0.8, 3)]
    _write(by_epoch, '20260101_010000', records)
    log = read_training_log(by_epoch)
    assert log.loss == {10: 3.0, 20: 2.0, 35: 1.4, 45: 0.9, 60: 0.8}
    assert log.metrics == {'coco/segm_mAP_50': {25: 0.1, 50: 0.5}}
    assert list(log.loss) == sorted(log.loss)


def test_resumed_run_removes_later_iterations(tmp_path):
    _write(tmp_path, '1', [_train(10, 3.0), _train(20, 2.0), _val(20, 0.2), _train(30, 1.0)])
    _write(tmp_path, '2', [_train(15, 2.5)])
    log = read_training_log(tmp_path)
    assert log.loss == {10: 3.0, 15: 2.5}
    assert log.metrics == {}


@pytest.mark.parametrize(
    ('trained', 'place'),
    [
        ([], 45),
        ([_train(60, 0.8, 3)], 45),
        # two epochs determine the length of an epoch
        ([_train(60, 0.8, 3), _train(85, 0.7, 4)], 50),
    ],
)
def test_validation_repeated_by_a_resumed_run(tmp_path, trained, place):
    first = [_train(10, 3.0, 1), _train(20, 2.0, 1), _val(1, 0.1)]
    first += [_train(35, 1.5, 2), _train(45, 1.0, 2)]
    _write(tmp_path, '1', first)
    _write(tmp_path, '2', [_val(2, 0.3), *trained])
    log = read_training_log(tmp_path)
    losses = {10: 3.0, 20: 2.0, 35: 1.5, 45: 1.0}
    assert log.loss == losses | {record['iter']: record['loss'] for record in trained}
    assert log.metrics == {'coco/segm_mAP_50': {25: 0.1, place: 0.3}}


def test_a_resumed_runs_validation_before_its_first_logged_loss(tmp_path):
    _write(tmp_path, '1', [_train(10, 3.0), _train(20, 2.0), _train(30, 1.5)])
    _write(tmp_path, '2', [_val(25, 0.2), _train(30, 1.4)])
    _write(tmp_path, '3', [_val(24, 0.3), _train(30, 1.3)])
    log = read_training_log(tmp_path)
    assert log.loss == {10: 3.0, 20: 2.0, 30: 1.3}
    assert log.metrics == {'coco/segm_mAP_50': {24: 0.3}}


def test_validation_without_training_is_ignored(by_epoch):
    before = read_training_log(by_epoch)
    _write(by_epoch, '20260101_020000', [_val(0, 0.9)])
    _write(by_epoch, '20260101_030000', [])
    assert read_training_log(by_epoch) == before


def test_only_numbers_are_metrics(tmp_path):
    record = {**_val(20, 0.3), 'coco/segm_mAP_copypaste': '0.3 0.5', 'flag': True}
    _write(tmp_path, '1', [_train(20, 1.0), record])
    assert list(read_training_log(tmp_path).metrics) == ['coco/segm_mAP_50']


def test_names_with_the_phase_as_prefix(tmp_path):
    records = [{'train/loss': 2.0, 'train/lr': 0.1, 'iter': 10, 'step': 10}]
    records += [{'val/mIoU': 30.0, 'val/time': 0.1, 'step': 10}]
    _write(tmp_path, '1', records)
    log = read_training_log(tmp_path)
    assert (log.loss, log.metrics) == ({10: 2.0}, {'mIoU': {10: 30.0}})


@pytest.mark.parametrize('inside', ['', '20260101_000000', '20260101_000000/vis_data/scalars.json'])
def test_ways_to_name_a_run(by_epoch, inside):
    log = read_training_log(by_epoch / inside)
    assert log.loss == read_training_log(by_epoch).loss
    assert log.name == ('20260101_000000' if inside == '20260101_000000' else 'run')


def test_incomplete_last_line_is_ignored(by_epoch):
    before = read_training_log(by_epoch)
    with next(by_epoch.rglob('scalars.json')).open('a') as file:
        file.write('{"lr": 0.1, "lo')
    assert read_training_log(by_epoch) == before


@pytest.mark.parametrize('line', ['{"lr": 0.1, "lo', '[1, 2]', '{"loss": 1.0}'])
def test_error_names_broken_line(tmp_path, line):
    file = _write(tmp_path, '1', [_train(10, 1.0)])
    file.write_text(line + '\n' + file.read_text())
    with pytest.raises(ValueError, match=r'scalars\.json, line 1: expected a JSON object'):
        read_training_log(tmp_path)


@pytest.mark.parametrize(
    ('name', 'problem'), [('missing', 'does not exist'), ('', 'contains no training log')]
)
def test_error_for_a_missing_log_states_what_is_expected(tmp_path, name, problem):
    with pytest.raises(FileNotFoundError, match=rf'{problem}; expected .*vis_data/scalars\.json'):
        read_training_log(tmp_path / name)


def test_a_log_without_losses_and_metrics(tmp_path):
    _write(tmp_path, '1', [_val(0, 0.5)])
    with pytest.raises(ValueError, match='neither a loss nor a metric'):
        read_training_log(tmp_path)


def test_reads_logs_of_mmengine(tmp_path):
    """Read the log that mmengine writes in an epoch-based run of a model with one parameter."""
    import torch
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, inputs, mode):
            return dict(loss=(self.weight - 1).square().sum()) if mode == 'loss' else [0]

    class Metric(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return dict(score=0.25)

    loader = dict(
        dataset=torch.arange(7.0),
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=lambda batch: dict(inputs=torch.stack(batch)),
    )
    Runner(
        model=Model(),
        work_dir=str(tmp_path),
        train_dataloader=loader,
        val_dataloader=dict(loader),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        val_cfg=dict(),
        val_evaluator=dict(type=Metric),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=3), checkpoint=None),
        experiment_name=tmp_path.name,
    ).train()
    log = read_training_log(tmp_path)
    assert list(log.loss) == [3, 6, 10, 13]
    assert list(log.loss.values()) == sorted(log.loss.values(), reverse=True)
    assert log.metrics == {'score': {7: 0.25, 14: 0.25}}


def test_smoothing_keeps_constants_and_ignores_nan():
    assert module.smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    noisy = module.smoothed([0.0, 1.0] * 100)
    assert min(noisy[100:]) > 0.4 and max(noisy[100:]) < 0.6
    gap = module.smoothed([math.nan, 1.0, math.inf, 1.0])
    assert math.isnan(gap[0]) and gap[1:] == pytest.approx([1.0] * 3)


# Plots


def test_plot_of_loss_and_metrics(by_epoch, tmp_path):
    out = plot_training_curves(by_epoch, tmp_path / 'new' / 'curves.png')
    picture = cv2.imread(str(out))
    assert picture.shape == (660, 1920, 3)
    # the left half shows the loss, the right half shows the metrics
    for half in (picture[:, :960], picture[:, 960:]):
        saturation = half.max(2).astype(int) - half.min(2)
        assert (saturation > 80).sum() > 500
    assert [path.name for path in out.parent.iterdir()] == ['curves.png']


def test_a_single_loss_is_visible(tmp_path):
    _write(tmp_path / 'short', '1', [_train(10, 9.0)])
    picture = cv2.imread(str(plot_training_curves(tmp_path / 'short', tmp_path / 'curves.png')))
    saturation = picture.max(2).astype(int) - picture.min(2)
    assert (saturation > 80).sum() > 50


def test_headline_metrics_are_plotted_by_range():
    run = TrainingLog('run', {1: 1.0})
    for name in ('mIoU', 'coco/bbox_mAP_s', 'coco/bbox_mAP', 'coco/segm_mAP_50'):
        run.metrics[name] = {1: 0.5}
    assert module._metric_groups([run]) == [['coco/segm_mAP_50', 'coco/bbox_mAP'], ['mIoU']]
    other = TrainingLog('other', {1: 1.0}, {'psnr': {1: 30.0}})
    assert module._metric_groups([other]) == [['psnr']]
    assert module._metric_groups([TrainingLog('bare', {1: 1.0})]) == []


def test_several_runs_and_labels_change_the_plot(by_epoch, tmp_path):
    _write(tmp_path / 'second', '1', [_train(10, 9.0), _val(10, 30.0, 'mIoU')])
    pair = [by_epoch, tmp_path / 'second']
    plain = plot_training_curves(pair, tmp_path / 'a.png').read_bytes()
    again = plot_training_curves(pair, tmp_path / 'b.png', labels=None).read_bytes()
    named = plot_training_curves(pair, tmp_path / 'c.png', labels=['first', 'other']).read_bytes()
    assert plain == again != named
    assert cv2.imread(str(tmp_path / 'a.png')).shape == (660, 2880, 3)


def test_failed_write_keeps_the_old_file(by_epoch, tmp_path, monkeypatch):
    out = tmp_path / 'curves.png'
    out.write_bytes(b'old')

    def failing(*args):
        raise OSError('no space left on device')

    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='no space left'):
        plot_training_curves(by_epoch, out)
    assert out.read_bytes() == b'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['curves.png', 'run']


@pytest.mark.parametrize(
    ('logs', 'out', 'labels', 'message'),
    [
        ([], 'curves.png', None, 'logs is empty'),
        (['run'], 'curves.jpg', None, r'must end in \.png, got .*curves\.jpg'),
        (['run'], 'curves.png', ['a', 'b'], 'labels has 2 entries for 1 logs'),
    ],
)
def test_bad_arguments(by_epoch, logs, out, labels, message):
    logs = [by_epoch.parent / log for log in logs]
    with pytest.raises(ValueError, match=message):
        plot_training_curves(logs, by_epoch / out, labels)
    assert not (by_epoch / out).exists()


def test_matplotlib_settings_are_unchanged(by_epoch, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_training_curves(by_epoch, tmp_path / 'curves.png')
    assert dict(matplotlib.rcParams) == before


# The tool


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('plot_log')


def test_tool_writes_to_the_work_dir_or_to_out(tool, by_epoch, tmp_path, capsys):
    tool.main([str(by_epoch)])
    assert (by_epoch / 'curves.png').is_file()
    assert str(by_epoch / 'curves.png') in capsys.readouterr().out
    tool.main([str(by_epoch), '--out', str(tmp_path / 'named.png'), '--labels', 'name'])
    assert (tmp_path / 'named.png').read_bytes() != (by_epoch / 'curves.png').read_bytes()


@pytest.mark.parametrize('options', [['missing'], ['run', '--labels', 'a', 'b']])
def test_tool_errors_are_one_line(tool, by_epoch, monkeypatch, options):
    monkeypatch.chdir(by_epoch.parent)
    with pytest.raises(UserError) as error:
        tool.main(options)
    assert '\n' not in str(error.value)
    assert not Path('missing').exists()
