"""The package in somebody else's project: its wheel, their folder, mmdet's own training tool."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import packed
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmgcvit.datasets import draw_shapes

ROOT = Path(__file__).parents[1]
CONFIG = """
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    __import__('mmgcvit').config_path('_base_/adamw.py'),
]
model = dict(
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', arch='xxtiny', window_size=8),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(_base_.adamw, _delete_=True)

# their own data
classes = dict(classes=('circle', 'rectangle', 'triangle'))
data = dict(data_root='shapes/coco/', metainfo=classes)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
CONFIG_OF_MMDET = """
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '{root}/configs/_base_/adamw.py']
model = dict(
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', arch='xxtiny', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], start_level=0))
optim_wrapper = dict(_base_.adamw, _delete_=True)
"""


@pytest.mark.slow
def test_wheel_trains_in_a_fresh_folder_by_mmdets_own_tool(tmp_path):
    def python(*arguments, **environment):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=400,
        )

    site = packed.install(tmp_path / 'site')
    draw_shapes(tmp_path / 'shapes', num_train=6, num_val=1, progress=False)
    (tmp_path / 'config.py').write_text(CONFIG)

    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    small = 'train_dataloader.dataset.pipeline.2.scale=(160,128)'
    trained = python(tool, 'config.py', '--cfg-options', small, PYTHONPATH=str(site))
    assert trained.returncode == 0, trained.stderr[-3000:]
    log = trained.stdout + trained.stderr
    assert 'Epoch(train) [1][3/3]' in log
    assert 'nan' not in log.split('Epoch(train) [1][3/3]')[1].split('\n')[0]
    assert (tmp_path / 'work_dirs' / 'config' / 'epoch_1.pth').is_file()
    used = Config.fromfile(tmp_path / 'work_dirs' / 'config' / 'config.py').optim_wrapper.optimizer
    assert used == dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    # without importing it, which takes seconds
    find = 'import importlib.util; print(importlib.util.find_spec("mmgcvit").origin)'
    where = python('-c', find, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))


@pytest.mark.parametrize('lr', [1e-4, 3e-4])
def test_optimizer_base_replaces_the_one_of_a_complete_mmdet_config(tmp_path, lr):
    config = CONFIG_OF_MMDET.format(root=ROOT)
    if lr != 1e-4:
        config += f'optim_wrapper["optimizer"] = dict(_base_.adamw.optimizer, lr={lr})\n'
    (tmp_path / 'config.py').write_text(config)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer) is torch.optim.AdamW
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    undecayed = {n for n, p in model.named_parameters() if decay[id(p)] == 0}
    assert undecayed == {
        name
        for name, _ in model.backbone.named_parameters(prefix='backbone')
        if 'norm' in name or name.endswith('relative_position_bias_table')
    }
    assert {group['lr'] for group in optimizer.param_groups} == {lr}
