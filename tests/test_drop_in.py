"""The package in somebody else's project: its wheel, their folder, mmdet's own training tool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest

from mmgcvit.datasets import draw_shapes

ROOT = Path(__file__).parents[1]
CONFIG = """
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', arch='xxtiny', window_size=8),
    neck=dict(in_channels=[64, 128, 256, 512]))

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

    # a copy, for setuptools builds in the folder and would pack what an earlier build left there
    source = tmp_path / 'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns('.*', 'build', 'data', 'work_dirs'))
    pip = ('-m', 'pip', '--disable-pip-version-check')
    built = python(*pip, 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', '.', source)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob('mmgcvit-*.whl')
    site = tmp_path / 'site'
    installed = python(*pip, 'install', '-q', '--no-deps', '--target', site, wheel)
    assert installed.returncode == 0, installed.stderr
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
    # without importing it, which takes seconds
    find = 'import importlib.util; print(importlib.util.find_spec("mmgcvit").origin)'
    where = python('-c', find, PYTHONPATH=str(site))
    assert where.stdout.startswith(str(site))
