"""A training that is killed and resumed ends with the weights of one that is not, bit for bit."""

import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import forks
import numpy as np
import pytest
import tiny_training
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import build_runner, find_checkpoint
from mmgcvit.engine.hooks import exact_resume
from mmgcvit.engine.resume import warn_of_earlier_training
from mmgcvit.errors import UserError
from mmgcvit.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
PER_EPOCH = 4


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('resume') / 'shapes'
    draw_shapes(root, num_train=12, num_val=1, progress=False)
    return root / 'coco' / 'train2017'


def train(command, out, **settings):
    code, printed = forks.run(*command, out=out, **settings)
    assert code == 0, printed[-3000:]
    return printed


def kill(command, out, loop, iteration, delay, **settings):
    """Start a training and kill it, data workers included, soon after that iteration."""
    # one more is begun and ended, if the delay lasts so long
    running = forks.Fork(*command, out=out, HOLD_AT=str(iteration + 1), **settings)
    deadline = time.monotonic() + 240
    while not re.search(shown_at(loop, iteration), out.read_text()):
        assert running.poll() is None and time.monotonic() < deadline, out.read_text()[-3000:]
        time.sleep(0.005)
    time.sleep(delay)
    running.signal(signal.SIGKILL)
    assert running.wait(60) == -signal.SIGKILL


def shown_at(loop, iteration):
    if loop == 'iter':
        return rf'Iter\(train\) \[ *{iteration}/'
    epoch, step = divmod(iteration - 1, PER_EPOCH)
    return rf'Epoch\(train\) +\[{epoch + 1}\]\[ *{step + 1}/'


def assert_same(found, expected, where='.'):
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f'{where}.{key}')
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f'{where}.{i}')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def assert_same_training(found, expected, name):
    """Compare the last checkpoints of two work dirs, and which files there are."""
    assert sorted(f.name for f in found.glob('*.pth')) == sorted(
        f.name for f in expected.glob('*.pth')
    )
    pair = [read_checkpoint(folder / name) for folder in (found, expected)]
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        assert_same(pair[0][part], pair[1][part], part)
    scores = [p['message_hub']['runtime_info']['best_score'] for p in pair]
    assert scores[0] == scores[1]
    costs = [validated(folder) for folder in (found, expected)]
    assert len(costs[1]) >= 3
    assert costs[0] == costs[1]


def validated(folder):
    """Return what every validation of a training gave; the last time that it was done."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {line['step']: line['cost'] for line in lines if 'cost' in line}


def check_kills(command, work_dirs, loop, seed, name, anew=False, **settings):
    """Kill a training at three moments, resume it each time; compare with one that went through.

    The last command runs ``anew``: with another seed of hashes than the forks have, as a user's.
    """
    whole, killed = work_dirs
    out = killed.with_suffix('.out')
    train([*command, '--work-dir', whole], out, **settings)
    rng = random.Random(seed)
    command = [*command, '--work-dir', killed, '--resume']
    # one before or at the first checkpoint, one before or at the second, one after it
    for least, most in ((1, 5), (6, 8), (9, 10)):
        kill(command, out, loop, rng.randint(least, most), rng.uniform(0, 0.03), **settings)
    if anew:
        code, log = forks.run_anew(*command)
        assert code == 0, log[-3000:]
    else:
        log = train(command, out, **settings)
    assert re.search(r'resuming from \S+/(iter_8|epoch_2)\.pth', log)
    assert_same_training(killed, whole, name)


@pytest.mark.parametrize(
    ('loop', 'workers'),
    [
        ('iter', 2),
        ('epoch', 0),
        pytest.param('iter', 0, marks=pytest.mark.slow),
        pytest.param('epoch', 2, marks=pytest.mark.slow),
    ],
)
def test_killed_three_times_it_ends_with_the_same_weights(images, tmp_path, loop, workers):
    path = tiny_training.config(images, tmp_path / f'{loop}{workers}', loop, workers)
    check_kills(
        ['tools/train.py', path],
        (tmp_path / 'whole', tmp_path / 'killed'),
        loop,
        seed=workers,
        name='iter_12.pth' if loop == 'iter' else 'epoch_3.pth',
        anew=loop == 'epoch' and not workers,
    )


@pytest.mark.parametrize(
    ('processes', 'seed'),
    [
        (2, {'seed': 3}),
        pytest.param(3, {'seed': 3, 'diff_rank_seed': True}, marks=pytest.mark.slow),
    ],
)
def test_several_processes_end_with_the_same_weights(images, tmp_path, processes, seed):
    path = tiny_training.config(images, tmp_path / 'several', 'iter', 1, randomness=seed)
    check_kills(
        ['tools/train.py', path, '--launcher', 'pytorch'],
        (tmp_path / 'whole', tmp_path / 'killed'),
        'iter',
        seed=7,
        name='iter_12.pth',
        ranks=processes,
    )


@pytest.mark.slow
def test_the_quickstarts_mask_rcnn_ends_with_the_same_weights(tmp_path):
    """mmdet's dataset, random flips, batch sampler and random sampling of boxes, 2 workers."""
    draw_shapes(tmp_path / 'shapes', num_train=8, num_val=2, progress=False)
    coco = tmp_path / 'shapes' / 'coco'
    options = {
        'train_cfg.max_epochs': 3,
        'param_scheduler.0.end': 4,
        'param_scheduler.1.end': 3,
        'default_hooks.logger.interval': 1,
        'train_dataloader.num_workers': 2,
        'train_dataloader.dataset.data_root': coco,
        'val_dataloader.dataset.data_root': coco,
        'val_evaluator.ann_file': coco / 'annotations/instances_val2017.json',
        'train_dataloader.dataset.pipeline.2.scale': '(96,64)',
        'val_dataloader.dataset.pipeline.1.scale': '(96,64)',
        'model.backbone.arch.embed_dims': 16,
        'model.neck.in_channels': '[16,32,64]',
        'train_dataloader.batch_size': 2,
        'model.roi_head.bbox_head.fc_out_channels': 64,
    }
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = ['{ROOT}/configs/detection/mask_rcnn_gcvit_shapes.py']\n"
        "custom_imports = dict(imports=['tiny_training'])\n"
        "custom_hooks = [dict(type='Hold')]\n"
    )
    settings = ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    command = ['tools/train.py', config, *settings]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    out = tmp_path / 'out'
    train([*command, '--work-dir', whole], out)
    command += ['--work-dir', killed, '--resume']
    for moment, delay in ((6, 0.1), (10, 0.0)):
        kill(command, out, 'epoch', moment, delay)
    assert re.search(r'resuming from \S+/epoch_2\.pth', train(command, out))
    pair = [read_checkpoint(folder / 'epoch_3.pth') for folder in (killed, whole)]
    for part in ('state_dict', 'optimizer'):
        assert_same(pair[0][part], pair[1][part], part)


class Draws(torch.utils.data.Dataset):
    """Not images but what the three generators give."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return random.random(), np.random.random(), torch.rand(1).item()


@pytest.mark.parametrize('workers', [0, 2])
def test_no_two_segments_workers_or_ranks_draw_the_same_numbers(monkeypatch, workers):
    config = {'sampler': {'type': 'DefaultSampler'}, 'batch_size': 2}
    before = DataLoader(Draws(), num_workers=workers)
    loop = SimpleNamespace(dataloader=before)
    runner = SimpleNamespace(cfg=Config({'train_dataloader': config}), train_loop=loop, seed=3)

    def draw(rank, iteration):
        monkeypatch.setattr(exact_resume, 'get_rank', lambda: rank)
        loader = exact_resume._Segments(runner).begin(iteration)
        return torch.stack([torch.stack(numbers, dim=1) for numbers in loader]).flatten().tolist()

    first = draw(0, 4)
    assert draw(0, 4) == first
    drawn = [*first, *draw(0, 8), *draw(1, 4), *draw(1, 8)]
    assert len(drawn) == 48
    assert len(set(drawn)) == 48


def runner_of(path, **options):
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(options)
    return build_runner(cfg)


@pytest.mark.parametrize('loop', ['iter', 'epoch'])
def test_without_a_seed_in_the_config_the_checkpoint_gives_it(images, tmp_path, loop):
    """In one process: until the second checkpoint, then resumed from the first."""
    path = tiny_training.config(
        images, tmp_path / f'noseed_{loop}', loop, 0, randomness={'seed': None}
    )
    first, last = (
        ('iter_4.pth', 'iter_12.pth') if loop == 'iter' else ('epoch_1.pth', 'epoch_3.pth')
    )
    keep = {'default_hooks.checkpoint.max_keep_ckpts': -1}
    runner_of(path, work_dir=str(tmp_path / 'whole'), **keep).train()
    resumed = {'work_dir': str(tmp_path / 'resumed'), 'experiment_name': f'{tmp_path.name}_resumed'}
    runner_of(
        path, **resumed, **keep, resume=True, load_from=str(tmp_path / 'whole' / first)
    ).train()
    pair = [read_checkpoint(tmp_path / d / last)['state_dict'] for d in ('resumed', 'whole')]
    assert_same(*pair)


def test_a_training_beside_earlier_checkpoints_states_what_resume_continues(tmp_path, log):
    cfg = Config(dict(work_dir=str(tmp_path)))

    def save(name, age):
        torch.save({}, tmp_path / name)
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / name))
        os.utime(tmp_path / name, (10**9 - age,) * 2)

    warn_of_earlier_training(cfg)
    assert not log
    save('epoch_7.pth', age=60)
    warn_of_earlier_training(Config(dict(work_dir=str(tmp_path), resume='auto')))
    assert not log
    warn_of_earlier_training(cfg)
    (line,) = log
    assert line.startswith(
        f'{tmp_path} has checkpoints of an earlier training (the newest is epoch_7'
    )
    assert 'starts from the beginning' in line
    # as the line states
    assert '--resume continues the earlier training until this one has saved' in line
    assert find_checkpoint(tmp_path).name == 'epoch_7.pth'
    save('epoch_1.pth', age=0)
    assert find_checkpoint(tmp_path).name == 'epoch_1.pth'


def test_at_iteration_150000_nothing_is_loaded_but_what_is_trained_on(images, tmp_path):
    path = tiny_training.config(images, tmp_path / 'late', 'iter', 0)
    short = {'train_cfg.max_iters': 1, 'work_dir': str(tmp_path / 'late')}
    runner_of(path, **short).train()
    checkpoint = torch.load(tmp_path / 'late' / 'iter_1.pth', weights_only=False)
    checkpoint['meta']['iter'] = 150_000
    torch.save(checkpoint, tmp_path / 'iter_150000.pth')

    reads = tmp_path / 'reads'
    began = time.monotonic()
    runner_of(
        path,
        **{
            'train_cfg.max_iters': 150_002,
            'train_dataloader.dataset.reads': str(reads),
            'resume': True,
            'load_from': str(tmp_path / 'iter_150000.pth'),
            'work_dir': str(tmp_path / 'late2'),
            'experiment_name': f'{tmp_path.name}_late2',
        },
    ).train()
    assert time.monotonic() - began < 30
    order = iter(InfiniteSampler(range(12), seed=3))
    expected = list(itertools.islice(order, 150_000 * 3, 150_002 * 3))
    assert [int(line) for line in reads.read_text().split()] == expected


class Seen(Hook):
    """What every image that was trained on sums up to; that tells the drawn images apart."""

    def __init__(self):
        self.sums = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sums += data_batch['image'].sum((1, 2, 3)).tolist()


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler'])
def test_workers_that_end_at_checkpoints_lose_and_repeat_no_image(images, tmp_path, sampler):
    """Four batches an epoch, a checkpoint every three."""
    path = tiny_training.config(images, tmp_path / sampler, 'iter', 2)
    runner = runner_of(
        path,
        **{
            'train_dataloader.sampler.type': sampler,
            'train_dataloader.dataset.augment': False,
            'default_hooks.checkpoint.interval': 3,
            # theirs would live as long as the runner
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
        },
    )
    runner.register_hook(seen := Seen())
    runner.train()
    assert not multiprocessing.active_children()
    epochs = [seen.sums[i : i + 12] for i in (0, 12, 24)]
    assert len(set(epochs[0])) == 12
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_no_pretrained_url_is_touched_on_resume(images, tmp_path):
    nowhere = {'type': 'Pretrained', 'checkpoint': 'http://127.0.0.1:9/nothing.pth'}
    path = tiny_training.config(images, tmp_path / 'url', 'epoch', 0)
    runner_of(path, **{'train_cfg.max_epochs': 1}).train()
    with pytest.raises(UserError, match='could not be downloaded'):
        runner_of(path, **{'model.init_cfg': nowhere, 'work_dir': str(tmp_path / 'anew')}).train()
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {'model.init_cfg': nowhere, 'experiment_name': f'{tmp_path.name}_url2', 'resume': 'auto'}
    )
    runner = build_runner(cfg)
    runner.train()
    assert runner.epoch == 3
    assert 'http://127.0.0.1:9/nothing.pth' in runner.cfg.pretty_text


def test_processes_go_on_from_one_checkpoint_or_not_at_all(images, tmp_path):
    """Two processes in folders of their own, as nodes that share no work dir."""
    path = tiny_training.config(images, tmp_path / 'apart', 'epoch', 0)
    out, first = tmp_path / 'out', tmp_path / '0' / 'work'
    train(
        ['tools/train.py', path, '--work-dir', first, '--cfg-options', 'train_cfg.max_epochs=1'],
        out,
    )
    (tmp_path / '1').mkdir()
    command = ['tests/data/scripts/train_apart.py', tmp_path, path, '--launcher', 'pytorch']
    # a validation would collect its results in the current folder
    command += ['--work-dir', 'work', '--resume', '--cfg-options', 'train_cfg.val_begin=9']

    code, printed = forks.run(*command, out=out, timeout=120, ranks=2)
    assert code == 1, printed[-3000:]
    error = 'error: work/epoch_1.pth is missing or incomplete for process 1 of 0 to 1: the work'
    assert printed.count(error) == 1

    (first / 'epoch_2.pth').write_bytes(b'cut')
    shutil.copytree(first, tmp_path / '1' / 'work')
    printed = train(command, out, ranks=2)
    assert printed.count('resuming from work/epoch_1.pth') == 1
    assert printed.count('work/epoch_2.pth is not complete') == 1
    assert printed.count('resumed epoch: 1, iter: 4') == 1
