"""Trainings that are killed at random moments end as if they had not been, or the log says why not.

Set KILLS_SEED to repeat a run; it is printed with the moments (pytest -s).
"""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import forks
import pytest
from test_resume import assert_same

from mmgcvit.datasets import draw_shapes
from mmgcvit.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
KILLS = 5  # of each training
SEED = int(os.environ.get('KILLS_SEED') or random.SystemRandom().randrange(10**6))
BEGINS = 'Checkpoints will be saved'  # the last line of the start-up

DETECTION = """
_base_ = ['{root}/configs/detection/mask_rcnn_gcvit_shapes.py']
custom_imports = dict(imports=['tiny_training'])
scale = (96, 64)
workers = dict(num_workers={workers}, persistent_workers={workers} > 0)
pipelines = dict(train=_base_.train_pipeline, test=_base_.test_pipeline)
pipelines['train'][2].scale = pipelines['test'][1].scale = scale
coco = '{shapes}/coco/'
train_dataloader = dict(
    batch_size={batch}, dataset=dict(data_root=coco, pipeline=pipelines['train']), **workers)
val_dataloader = dict(
    batch_size=1, dataset=dict(data_root=coco, pipeline=pipelines['test']), **workers)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='CocoMetric', metric=['bbox'], ann_file=coco + 'annotations/instances_val2017.json'),
    dict(type='MeanScore')]
test_evaluator = val_evaluator
arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), mlp_ratio=2,
            layer_scale_init_value=0.5)
model = dict(backbone=dict(arch=arch), neck=dict(in_channels=[8, 16, 32]),
             roi_head=dict(bbox_head=dict(fc_out_channels=32)),
             test_cfg=dict(rcnn=dict(score_thr=0.)))
train_cfg = dict(max_epochs=6, val_interval=1)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(save_best='mean/score', rule='greater'))
"""
SEGMENTATION = """
_base_ = ['{root}/tests/data/configs/upernet_tiny.py']
dataset = dict(data_root='{shapes}/ADEChallengeData2016')
loader = dict(num_workers={workers}, persistent_workers={workers} > 0, dataset=dataset)
train_dataloader = dict(batch_size={batch}, **loader)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_iters=24, val_interval=6)
default_hooks = dict(checkpoint=dict(save_best='mIoU', interval=4, max_keep_ckpts=2))
"""
EMA = "dict(type='EMAHook', momentum=0.2)"
PLATEAU = (
    "param_scheduler.append(dict(type='ReduceOnPlateauLR', monitor='{}', rule='greater',"
    ' factor=0.5, patience=0, threshold=10.0))\n'
)
STOPPING = "dict(type='EarlyStoppingHook', monitor='{}', rule='greater', min_delta=10, patience=3)"
ACCUMULATION = 'optim_wrapper = dict(accumulative_counts=2)\n'

TRAININGS = {
    'detection, EMA, early stopping, plateau': (
        DETECTION
        + PLATEAU.format('mean/score')
        + f'custom_hooks = [{EMA}, {STOPPING.format("mean/score")}]\n',
        dict(batch=2, workers=1),
        1,
    ),
    'detection, accumulation': (
        DETECTION + ACCUMULATION,
        dict(batch=1, workers=0),
        2,
    ),
    'segmentation, EMA, plateau, accumulation': (
        SEGMENTATION
        + "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4)]\n"
        + PLATEAU.format('mIoU')
        + ACCUMULATION
        + f'custom_hooks = [{EMA}]\n',
        dict(batch=2, workers=0),
        1,
    ),
    'segmentation, early stopping': (
        SEGMENTATION + f'custom_hooks = [{STOPPING.format("mIoU")}]\n',
        dict(batch=2, workers=1),
        2,
    ),
}
CHAINS = [
    *((name, signal.SIGKILL) for name in TRAININGS),
    ('detection, EMA, early stopping, plateau', signal.SIGTERM),
    ('segmentation, early stopping', signal.SIGTERM),
]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kills') / 'shapes'
    draw_shapes(folder, num_train=8, num_val=2, progress=False)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize('chain', range(len(CHAINS)))
def test_random_kills(shapes, tmp_path, chain):
    name, number = CHAINS[chain]
    text, settings, ranks = TRAININGS[name]
    config = tmp_path / 'config.py'
    config.write_text(text.format(root=ROOT, shapes=shapes, **settings))
    command = ['tools/train.py', config, *(['--launcher', 'pytorch'] if ranks > 1 else [])]
    whole, killed, out = tmp_path / 'whole', tmp_path / 'killed', tmp_path / 'out'
    rng = random.Random(SEED + chain)

    running = start(command, whole, out, ranks)
    wait_for_begin(running, out)
    began = time.monotonic()
    assert running.wait(240) == 0, out.read_text()[-3000:]
    duration = time.monotonic() - began
    print(f'\n{name}, {ranks} process(es), seed {SEED}: {duration:.1f} s without kills')

    kills = 0
    while kills < KILLS:
        running = start(command, killed, out, ranks)
        if rng.random() < 0.9:
            wait_for_begin(running, out)
        delay = rng.uniform(0, 0.3 * duration)
        time.sleep(delay)
        phase = (out.read_text().splitlines() or ['start-up'])[-1]
        # some of SIGTERM's chain are SIGKILLs
        sent = signal.SIGKILL if rng.random() < 0.3 else number
        if running.poll() is None:
            running.signal(sent)
        code = running.wait(90)
        if code == 0:  # it ended before
            print('  finished')
            compare(killed, whole, number)
            shutil.rmtree(killed)
            continue
        kills += 1
        print(f'  {sent.name} after {delay:.2f} s, exit code {code}, in: {phase[:110]}')
        if sent is signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            # in the start-up, -15 (as an exit code: 241) of all or 1 of some of the processes
            codes = {75, -signal.SIGTERM, *((1, 241) if ranks > 1 else ())}
            assert code in codes, out.read_text()[-3000:]
    running = start(command, killed, out, ranks)
    assert running.wait(240) == 0, out.read_text()[-3000:]
    compare(killed, whole, number)


def start(command, work_dir, out, ranks):
    arguments = [*command, '--work-dir', work_dir, '--resume']
    return forks.Fork(*arguments, out=out, ranks=ranks)


def wait_for_begin(running, out):
    deadline = time.monotonic() + 120
    while BEGINS not in out.read_text():
        if running.poll() is not None:
            return
        assert time.monotonic() < deadline, out.read_text()[-3000:]
        time.sleep(0.005)


def compare(found, expected, number):
    """Compare the last checkpoints of two work dirs, and which files there are."""
    last = [Path((folder / 'last_checkpoint').read_text()).name for folder in (found, expected)]
    pair = [read_checkpoint(f / name) for f, name in zip((found, expected), last, strict=True)]
    assert pair[0]['meta']['iter'] == pair[1]['meta']['iter']
    log = '\n'.join(path.read_text() for path in found.glob('*/*.log'))
    reasons = set(re.findall(r'will not be exact: SIGTERM|not exact, because random', log))
    if reasons:
        assert number == signal.SIGTERM
        print(f'  not compared, as the log says: {reasons}')
        return
    assert 'not be exact' not in log
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in (found, expected)]
    assert names[0] == names[1]
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(pair[0][part], pair[1][part], part)
    assert pair[0].get('ema_state_dict', {}).keys() == pair[1].get('ema_state_dict', {}).keys()
    assert_same(pair[0].get('ema_state_dict'), pair[1].get('ema_state_dict'), 'ema_state_dict')
    assert_same(*(p['hooks'].get('ResumableEarlyStoppingHook') for p in pair), 'early stopping')
    print('  equal')
