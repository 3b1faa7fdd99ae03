"""The quickstart's training, shrunk: it learns, survives an interruption and says what it did."""

import errno
import functools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import forks
import pytest
import torch

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine.brief_runner import BriefRunner
from mmgcvit.errors import UserError
from mmgcvit.visualization import read_training_log

ROOT = Path(__file__).parents[1]
CONFIG = 'configs/detection/mask_rcnn_gcvit_shapes.py'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('quickstart') / 'shapes'
    draw_shapes(root, num_train=16, num_val=4, progress=False)
    return root / 'coco'


def options(shapes, max_epochs):
    """The quickstart's own config on fewer and smaller images."""
    settings = {
        'train_cfg.max_epochs': max_epochs,
        'train_cfg.val_interval': 1,
        'train_dataloader.batch_size': 2,
        # after so short a training, metrics of whatever is found
        'model.test_cfg.rcnn.score_thr': 0.0,
        'param_scheduler.0.end': 4,
        'param_scheduler.1.end': max_epochs,
        'default_hooks.logger.interval': 1,
        'val_evaluator.ann_file': shapes / 'annotations/instances_val2017.json',
    }
    for split in ('train', 'val'):
        settings |= {
            f'{split}_dataloader.dataset.data_root': shapes,
            f'{split}_dataloader.num_workers': 0,
            f'{split}_dataloader.persistent_workers': False,
        }
    settings['train_dataloader.dataset.pipeline.2.scale'] = '(160,128)'
    settings['val_dataloader.dataset.pipeline.1.scale'] = '(160,128)'
    return ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]


def test_training_lowers_its_loss_and_resumes_where_it_was_interrupted(shapes, tmp_path):
    arguments = (CONFIG, '--work-dir', tmp_path, '--resume', *options(shapes, 4))
    # in a session of its own: Ctrl-C reaches it and its children as in a terminal
    running = forks.Fork('tools/train.py', *arguments, out=tmp_path / 'out.txt')
    deadline = time.monotonic() + 240
    while 'Epoch(train) [3]' not in running.out.read_text():
        told = running.out.read_text()[-3000:]
        assert running.poll() is None and time.monotonic() < deadline, told
        time.sleep(0.1)
    running.signal(signal.SIGINT)
    assert running.wait(60) == 130
    printed = (tmp_path / 'out.txt').read_text()
    assert printed.strip().endswith('interrupted')
    assert 'The last checkpoint is of iteration 16, and --resume continues from there' in printed
    assert 'Traceback' not in printed
    # the config and the environment are in the log file, which the screen names
    log = Path(re.search(r'environment, config and hooks: (.+)', printed)[1]).read_text()
    for dump in ('System environment', "type='MaskRCNN'"):
        assert dump in log and dump not in printed

    code, log = forks.run('tools/train.py', *arguments, out=tmp_path / 'resumed.txt')
    assert code == 0, log[-3000:]
    assert 'resumed epoch: 2, iter: 16' in log
    assert 'Epoch(train) [4][8/8]' in log and 'Epoch(train) [2]' not in log
    assert re.search(r'eta: \d+:\d\d:\d\d', log)
    training = read_training_log(tmp_path)
    losses = [training.loss[i] for i in sorted(training.loss)]
    assert len(losses) == 32
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert set(training.metrics['coco/segm_mAP_50']) == {8, 16, 24, 32}


DUMPS = (
    *('System environment', 'Hooks will be executed', "type='MaskRCNN'", 'Average Precision'),
    *('index created', 'Evaluating segm', 'deprecated'),
)


def test_brief_runner_shows_progress_and_logs_the_rest(shapes, tmp_path):
    arguments = (CONFIG, '--work-dir', tmp_path, *options(shapes, 2))
    brief = 'runner_type=mmgcvit.BriefRunner'
    code, screen = forks.run('tools/train.py', *arguments, brief, out=tmp_path / 'out.txt')
    assert code == 0, screen[-3000:]
    assert not [dump for dump in DUMPS if dump in screen]
    for epoch in (1, 2):
        for iteration in range(1, 9):
            place = rf'Epoch\(train\) \[{epoch}\]\[{iteration}/8\]'
            assert len(re.findall(place + r'  loss: \d+\.\d+  eta: \d:\d\d:\d\d\n', screen)) == 1
    box_and_mask = r'box AP (\d\.\d+), AP50 \d\.\d+; mask AP (\d\.\d+), AP50 \d\.\d+\n'
    shown = re.findall(rf'8/8\].*\nvalidation  {box_and_mask}', screen)
    metrics = read_training_log(tmp_path).metrics
    boxes, masks = (metrics[f'coco/{kind}_mAP'].values() for kind in ('bbox', 'segm'))
    assert shown == [(f'{box:.3f}', f'{mask:.3f}') for box, mask in zip(boxes, masks, strict=True)]
    assert len(shown) == 2
    assert len(screen.splitlines()) < 30

    log = Path(re.search(r'details: (\S+\.log)', screen)[1]).read_text()
    assert not [dump for dump in DUMPS if dump not in log]
    assert 'Epoch(train) [2][8/8]' in log and 'loss_mask' in log


def test_warnings_reach_the_screen_and_other_metrics_are_shown_by_name(tmp_path, capsys):
    runner = BriefRunner(torch.nn.Linear(1, 1), str(tmp_path), experiment_name=tmp_path.name)
    runner.logger.info('a detail')
    runner.logger.warning('take care')
    assert [line.rpartition(' - ')[2] for line in capsys.readouterr().out.splitlines()] == [
        'take care'
    ]
    (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == 'ProgressHook')
    hook.after_val_epoch(runner, {'mIoU': 41.25, 'aAcc': 80.0})
    coco = {
        'bbox_mAP': 0.4,
        'bbox_mAP_50': 0.5,
        'segm_mAP': 0.6,
        'segm_mAP_50': 0.7,
        'segm_mAP_s': -1,
    }
    hook.after_val_epoch(runner, {f'coco/{name}': value for name, value in coco.items()})
    hook.after_val_epoch(runner, {})
    assert capsys.readouterr().out.splitlines() == [
        'validation  mIoU: 41.250  aAcc: 80.000',
        'validation  box AP 0.400, AP50 0.500; mask AP 0.600, AP50 0.700',
        'validation  no detections yet',
    ]
    (log,) = tmp_path.glob('*/*.log')
    assert 'a detail' in log.read_text() and 'take care' in log.read_text()


def test_a_config_that_does_not_exist_is_one_line_and_exit_code_1(tmp_path):
    missing = 'configs/detection/nothing.py'
    code, printed = forks.run('tools/train.py', missing, out=tmp_path / 'out.txt')
    assert code == 1
    assert printed.startswith(f'error: the config {missing} does not exist')
    assert 'Traceback' not in printed


@pytest.mark.parametrize('damage', ['lacks', 'was drawn with'])
def test_quickstart_recommends_fresh_for_a_dataset_that_it_replaces(
    damage, load_tool, monkeypatch, tmp_path
):
    tool = load_tool('quickstart')
    monkeypatch.setattr(tool, 'DATA', tmp_path / 'shapes')
    monkeypatch.setattr(tool, 'draw_shapes', functools.partial(draw_shapes, num_train=2, num_val=1))
    draw_shapes(tool.DATA, 1 if damage == 'was drawn with' else 2, 1, progress=False)
    if damage == 'lacks':
        next(tool.DATA.glob('coco/train2017/*.jpg')).unlink()
    with pytest.raises(UserError, match=damage) as error:
        tool.draw_data(fresh=False)
    assert str(error.value).endswith('; run tools/quickstart.sh --fresh to replace it')
    assert '--overwrite' not in str(error.value)
    tool.draw_data(fresh=True)
    tool.draw_data(fresh=False)


@pytest.mark.parametrize('reason', ['not a shapes dataset', 'No space left on device'])
def test_quickstart_recommends_fresh_for_no_other_error(reason, load_tool, monkeypatch, tmp_path):
    tool = load_tool('quickstart')
    monkeypatch.setattr(tool, 'DATA', tmp_path)
    if reason.startswith('No space'):

        def fail(*arguments, **settings):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(tool, 'draw_shapes', fail)
    (tmp_path / 'photo.jpg').write_text('mine')
    with pytest.raises(UserError, match=reason) as error:
        tool.draw_data(fresh=False)
    assert 'fresh' not in str(error.value)


TRAINING = """
import pathlib, signal, sys, time

def save(number, frame):
    time.sleep(0.5)
    pathlib.Path('saved').touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path('started').touch()
time.sleep(60)
"""


def appears(path):
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl is an option of Linux')
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_the_training_saves_and_ends_with_the_quickstart(
    load_tool, monkeypatch, tmp_path, number, code
):
    tool = load_tool('quickstart')
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, 'final_checkpoint', lambda: Path('epoch_3.pth'))
    process = os.fork()
    if process == 0:
        try:
            tool.train()
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(99)
    assert appears(tmp_path / 'started')
    os.kill(process, number)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    if number == signal.SIGTERM:  # a second quickstart could start now
        assert (tmp_path / 'saved').exists()
    assert appears(tmp_path / 'saved')


@pytest.mark.slow
def test_fresh_starts_over_and_a_second_quickstart_reuses_what_is_done(tmp_path):
    """tools/quickstart.py and its config, shrunk, in a copy of the checkout's layout."""
    shrunk = {
        CONFIG: {
            'scale = (160, 128)': 'scale = (120, 96)',
            'max_epochs = 14': 'max_epochs = 1',
            'interval=25': 'interval=1',
        },
        'tools/quickstart.py': {'draw_shapes(DATA,': 'draw_shapes(DATA, 16, 4,'},
    }
    for name, settings in shrunk.items():
        text = (ROOT / name).read_text()
        for setting, value in settings.items():
            assert text.count(setting) == 1
            text = text.replace(setting, value)
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / 'tools' / 'train.py').symlink_to(ROOT / 'tools' / 'train.py')

    def quickstart(*arguments):
        command = ('tools/quickstart.py', *arguments)
        code, printed = forks.run(*command, out=tmp_path / 'printed.txt', cwd=tmp_path)
        assert code == 0, printed[-3000:]
        return printed

    # what would be done already, but for --fresh
    work_dir = tmp_path / 'work_dirs' / 'quickstart'
    work_dir.mkdir(parents=True)
    torch.save({'state_dict': {}}, work_dir / 'epoch_1.pth')
    first = quickstart('--fresh')
    assert '--fresh: deleting work_dirs/quickstart' in first
    assert 'Epoch(train) [1][' in first
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert f'{metrics["coco/segm_mAP_50"]:8.3f}' in first
    assert not [dump for dump in DUMPS if dump in first]
    for name in ('epoch_1.pth', 'curves.png', 'predictions.png'):
        assert (work_dir / name).stat().st_size > 1000
        assert str(Path('work_dirs/quickstart') / name) in first

    second = quickstart()
    assert second.count('already done, using') == 2
    assert 'Epoch(' not in second
    assert second.split('AP75')[1] == first.split('AP75')[1]
