"""Trainings in shards, by FSDP in two processes without a GPU."""

import json
import shutil

import pytest
import torch
from launching import CONFIGS, metrics_of_test, metrics_of_validation
from tiers import in_shards

pytestmark = in_shards
CONFIG = CONFIGS / 'fsdp_tiny.py'


@pytest.fixture(scope='module')
def sharded(train, tmp_path_factory):
    """FSDP, but for that as ``mask_rcnn``."""
    work_dir = tmp_path_factory.mktemp('fsdp')
    keep = ('default_hooks.checkpoint.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=-1')
    train(CONFIG, work_dir, '--auto-scale-lr', '--cfg-options', *keep)
    return work_dir


def grad_norms(work_dir):
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    lines = map(json.loads, file.read_text().splitlines())
    return [line['grad_norm'] for line in lines if 'grad_norm' in line]


def assert_equal_weights(path, other):
    ours, theirs = (torch.load(file, weights_only=False)['state_dict'] for file in (path, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.slow
def test_training_in_shards_gives_the_weights_of_training_in_copies(sharded, mask_rcnn):
    assert_equal_weights(sharded / 'epoch_3.pth', mask_rcnn[0] / 'epoch_3.pth')
    assert metrics_of_validation(sharded) == metrics_of_validation(mask_rcnn[0])
    parts, wholes = (
        [int((folder / f'rank_{rank}.txt').read_text()) for rank in (0, 1)]
        for folder in (sharded, mask_rcnn[0])
    )
    assert wholes[0] == wholes[1] == sum(parts)
    # gradients are clipped by the norm of all of them, not of a process's part
    norms = [grad_norms(folder) for folder in (sharded, mask_rcnn[0])]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) == 12
    assert max(parts) < 0.6 * wholes[0]


@pytest.mark.slow
def test_training_in_shards_resumes_exactly_and_fetches_nothing(train, sharded, tmp_path):
    shutil.copy(sharded / 'epoch_1.pth', tmp_path)
    nowhere = (
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/nothing.pth',
    )
    printed = train(CONFIG, tmp_path, '--auto-scale-lr', '--resume', '--cfg-options', *nowhere)
    assert 'resumed epoch: 1, iter: 4' in printed
    assert_equal_weights(tmp_path / 'epoch_3.pth', sharded / 'epoch_3.pth')
    ours, theirs = (
        torch.load(folder / 'epoch_3.pth', weights_only=False)['optimizer']['state']
        for folder in (tmp_path, sharded)
    )
    # torch on a CPU would have saved the squares twice
    assert any((state['exp_avg'] < 0).any() for state in theirs.values())
    for name, state in theirs.items():
        for key, value in state.items():
            assert torch.equal(ours[name][key], value), (name, key)


@pytest.mark.slow
def test_shards_refuse_a_checkpoint_of_another_size(train, sharded, tmp_path):
    larger = ('model.backbone.arch.embed_dims=32', 'model.neck.in_channels=[32,64,128]')
    options = ('--cfg-options', f'load_from={sharded / "epoch_3.pth"}', *larger)
    printed = train(CONFIG, tmp_path, *options, code=1)
    ours = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(ours) == 1
    assert 'epoch_3.pth does not match the model: 174 tensors have mismatched shapes' in ours[0]


def test_a_config_of_shards_is_tested_as_a_whole(evaluate, mask_rcnn, tmp_path):
    evaluate(CONFIG, mask_rcnn[0] / 'epoch_3.pth', '--work-dir', tmp_path / 'work')
    assert metrics_of_test(tmp_path / 'work') == metrics_of_validation(mask_rcnn[0])
