"""tools/train.py, given what cannot work, and the configs for a user's own data, which can."""

import json
import shutil
import sys
import time
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from PIL import Image

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import build_runner, load_config, require_data
from mmgcvit.errors import UserError

ROOT = Path(__file__).parents[2]
SHAPES = 'configs/detection/mask_rcnn_gcvit_shapes.py'
SMALL = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    mlp_ratio=2,
    layer_scale_init_value=None,
)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('bad_input') / 'shapes'
    draw_shapes(root, num_train=4, num_val=2, progress=False)
    return root


def detection_options(root):
    """What a user says of other data by --cfg-options alone."""
    options = {f'{s}_dataloader.dataset.data_root': str(root) for s in ('train', 'val', 'test')}
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = f'{root}/annotations/instances_val2017.json'
    return options


def train(tmp_path, options):
    """Run tools/train.py and return the error that it ends with, within 30 seconds."""
    forks.start_server()  # its imports do not count
    begun = time.monotonic()
    code, printed = forks.run(
        *('tools/train.py', SHAPES, '--work-dir', tmp_path / 'work', '--cfg-options'),
        *(f'{key}={value}' for key, value in options.items()),
        out=tmp_path / 'out',
        TORCH_HOME=str(tmp_path / 'torch'),
        no_proxy='127.0.0.1',
    )
    assert code == 1, printed[-3000:]
    assert 'Traceback' not in printed
    errors = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1, printed[-3000:]
    assert printed.rstrip().endswith(errors[0])
    assert time.monotonic() - begun < 30
    return errors[0]


def test_missing_annotations_end_a_training_in_one_line(shapes, tmp_path):
    shutil.copytree(shapes / 'coco', tmp_path / 'coco')
    (tmp_path / 'coco/annotations/instances_train2017.json').unlink()
    error = train(tmp_path, detection_options(tmp_path / 'coco'))
    assert 'train: the annotation file' in error
    assert 'instances_train2017.json does not exist: put it there' in error


def test_weights_out_of_reach_end_a_training_in_one_line(shapes, tmp_path):
    options = detection_options(shapes / 'coco')
    options['model.backbone.init_cfg.type'] = 'Pretrained'
    # port 9 discards, and is closed where nobody set it up
    options['model.backbone.init_cfg.checkpoint'] = 'http://127.0.0.1:9/gcvit.pth.tar'
    error = train(tmp_path, options)
    assert 'http://127.0.0.1:9/gcvit.pth.tar could not be downloaded' in error
    by_hand = tmp_path / 'torch/hub/checkpoints/gcvit.pth.tar'
    assert f'copy the file to {by_hand} manually' in error


def empty(root):
    path = root / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, 'images': [], 'annotations': []}))


def no_root(root):
    shutil.rmtree(root)


MISTAKES = {
    'no data root': (no_root, {}, r'train: .*coco does not exist'),
    'no image': (empty, {}, r'train: .* no image'),
    'other class count': (
        None,
        {'model.roi_head.bbox_head.num_classes': 7},
        r'is 7, but the train dataset has 3 classes',
    ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_other_mistakes_end_before_the_training(shapes, tmp_path, monkeypatch, load_tool, mistake):
    """In this process: that such errors end a process in one line, the tests above show."""
    spoil, more, reason = MISTAKES[mistake]
    root = tmp_path / 'coco'
    shutil.copytree(shapes / 'coco', root)
    if spoil:
        spoil(root)
    options = [f'{k}={v}' for k, v in (detection_options(root) | more).items()]
    arguments = ['train.py', SHAPES, '--work-dir', str(tmp_path / 'work'), '--cfg-options']
    monkeypatch.setattr(sys, 'argv', [*arguments, *options])
    with pytest.raises(UserError, match=reason):
        load_tool('train').main()
    assert not list(tmp_path.glob('work/*.pth'))


@pytest.mark.parametrize('resume', [[], ['--resume']])
def test_a_forgotten_resume_is_mentioned(tmp_path, monkeypatch, load_tool, log, resume):
    (tmp_path / 'work').mkdir()
    torch.save({}, tmp_path / 'work' / 'epoch_3.pth')
    options = [f'{key}={value}' for key, value in detection_options(tmp_path / 'no').items()]
    arguments = ['train.py', SHAPES, '--work-dir', str(tmp_path / 'work'), *resume]
    monkeypatch.setattr(sys, 'argv', [*arguments, '--cfg-options', *options])
    with pytest.raises(UserError, match='no does not exist'):
        load_tool('train').main()
    assert any('checkpoints of an earlier training' in line for line in log) == (not resume)


def test_a_test_without_its_data_ends_before_it_begins(tmp_path, monkeypatch, load_tool):
    (tmp_path / 'epoch_1.pth').touch()
    options = [f'{key}={value}' for key, value in detection_options(tmp_path / 'no').items()]
    arguments = ['test.py', SHAPES, str(tmp_path / 'epoch_1.pth'), '--tta']
    work_dir = ['--work-dir', str(tmp_path / 'work'), '--cfg-options']
    monkeypatch.setattr(sys, 'argv', [*arguments, *work_dir, *options])
    with pytest.raises(UserError, match=r'test: data_root .*no does not exist'):
        load_tool('test').main()


def shrink(cfg, tmp_path, images):
    """Make a published recipe fit a test: a small backbone, small images and two iterations."""
    cfg.work_dir = str(tmp_path / 'work')
    cfg.model.backbone.update(arch=dict(SMALL), init_cfg=None, window_size=4)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.pipeline = [
            dict(type='Resize', scale=images) if 'Resize' in step['type'] else step
            for step in loader.dataset.pipeline
        ]
    cfg.train_cfg = dict(by_epoch=False, max_iters=2, val_interval=2)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    cfg.optim_wrapper.type = 'OptimWrapper'
    cfg.optim_wrapper.pop('loss_scale', None)
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.norm_cfg = dict(type='BN')


def replace_sync_bn(node):
    """SyncBN is for GPUs."""
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        node = node.values()
    if not isinstance(node, str) and hasattr(node, '__iter__'):
        for part in node:
            replace_sync_bn(part)


def own_labels(root):
    """Give the shapes label values from 0, as a user's own segmentation set has them."""
    for path in root.glob('annotations/*/*.png'):
        labels = np.asarray(Image.open(path))
        own = np.zeros_like(labels)
        for number, value in enumerate((120, 42, 115), 1):
            own[labels == value] = number
        Image.fromarray(own).save(path)


def metrics_of(cfg, tmp_path):
    """Train and return the scalars of the log."""
    replace_sync_bn(cfg.model)
    runner = build_runner(cfg)
    require_data(cfg)
    runner.train()
    assert runner.iter == 2
    assert (tmp_path / 'work/iter_2.pth').exists()
    scalars = runner.message_hub.log_scalars
    assert torch.isfinite(torch.tensor(scalars['train/loss'].data[0])).all()
    return runner, scalars


def shrink_heads(model):
    """Make a detector's heads small, and give them few proposals."""
    for head in model.roi_head.bbox_head:
        head.update(num_shared_convs=1, fc_out_channels=32)
    model.roi_head.mask_head.num_convs = 1
    for stage in model.train_cfg.rcnn:
        stage.sampler.num = 16
    for settings in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        settings.max_per_img = 16


@pytest.mark.parametrize('by', ['child config', 'options alone'])
def test_a_detector_trains_on_data_of_ones_own(by, shapes, tmp_path):
    options = detection_options(shapes / 'coco')
    if by == 'child config':
        cfg = load_config('configs/detection/custom_coco.py', options=options)
    else:
        for split in ('train', 'val', 'test'):
            classes = ['circle', 'rectangle', 'triangle']
            options[f'{split}_dataloader.dataset.metainfo.classes'] = classes
        for head in ('bbox_head.0', 'bbox_head.1', 'bbox_head.2', 'mask_head'):
            options[f'model.roi_head.{head}.num_classes'] = 3
        cfg = load_config('configs/detection/cascade_gcvit_t.py', options=options)
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    shrink_heads(cfg.model)
    shrink(cfg, tmp_path, (96, 64))
    cfg.train_dataloader.dataset.pipeline[3] = dict(type='Resize', scale=(96, 64))
    # an untrained detector finds nothing, and mmdet then gives no metric
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    runner, scalars = metrics_of(cfg, tmp_path)
    assert [head.num_classes for head in runner.model.roi_head.bbox_head] == [3, 3, 3]
    assert {head.num_classes for head in runner.model.roi_head.mask_head} == {3}
    assert 'val/coco/segm_mAP' in scalars


def test_a_segmentor_trains_on_data_of_ones_own(shapes, tmp_path):
    root = tmp_path / 'own'
    shutil.copytree(shapes / 'ADEChallengeData2016', root)
    own_labels(root)
    splits = ('train', 'val', 'test')
    options = {f'{split}_dataloader.dataset.data_root': str(root) for split in splits}
    cfg = load_config('configs/segmentation/custom_dataset.py', options=options)
    cfg.model.decode_head.update(in_channels=[16, 32, 64, 128], channels=16)
    cfg.model.auxiliary_head.update(in_channels=64, channels=16)
    cfg.model.data_preprocessor.size = (64, 64)
    shrink(cfg, tmp_path, (96, 64))
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == 'RandomCrop':
            step.crop_size = (64, 64)
    runner, scalars = metrics_of(cfg, tmp_path)
    assert runner.model.decode_head.conv_seg.out_channels == 4
    assert runner.model.auxiliary_head.conv_seg.out_channels == 4
    assert 0 <= scalars['val/mIoU'].data[0][-1] <= 100
