"""Configs of segmentation heads, on drawn data in the layouts of their datasets."""

import copy
import io
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from test_configs import (
    HEADS,
    published,
    test_norms_and_bias_tables_are_not_decayed,  # noqa: F401, it runs with the fixture of this file
)

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import rehearse

# file of an image and of its label map, and the names of the splits
LAYOUTS = {
    'cityscapes': (
        'leftImg8bit/{}/town/{}_leftImg8bit.png',
        'gtFine/{}/town/{}_gtFine_labelTrainIds.png',
        ('train', 'val'),
    ),
    'coco-stuff164k': (
        'images/{}/{}.jpg',
        'annotations/{}/{}_labelTrainIds.png',
        ('train2017', 'val2017'),
    ),
}
SEGMENTORS = [path for path in HEADS if path.parent.name == 'segmentation']
assert SEGMENTORS  # pytest would skip the tests


@pytest.fixture(params=SEGMENTORS, ids=lambda path: path.stem)
def built(request):
    """A config and its model, without values."""
    cfg = published(request.param)
    init_default_scope('mmseg')
    with torch.device('meta'):
        return cfg, MODELS.build(copy.deepcopy(cfg.model))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folders of drawn data by the name of a dataset."""
    root = tmp_path_factory.mktemp('segmentation')
    draw_shapes(root, num_train=4, num_val=2, progress=False)
    ade20k = root / 'ADEChallengeData2016'
    for name, (*files, splits) in LAYOUTS.items():
        for drawn, split in zip(('training', 'validation'), splits, strict=True):
            for image in (ade20k / 'images' / drawn).iterdir():
                label_map = ade20k / 'annotations' / drawn / f'{image.stem}.png'
                # classes 0, 1, … instead of ADE20K's values
                values = cv2.imread(str(label_map), 0)
                labels = np.unique(values, return_inverse=True)[1].reshape(values.shape)
                for file, pixels in zip(files, (cv2.imread(str(image)), labels), strict=True):
                    path = root / name / file.format(split, image.stem)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), pixels.reshape(*pixels.shape[:2], -1).astype(np.uint8))
    return {'ade20k': ade20k, **{name: root / name for name in LAYOUTS}}


def small(cfg, data_root):
    """Change a config to a small network and small images of drawn data."""
    # with the channels of GC ViT-T
    arch = dict(embed_dims=64, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2)
    arch['layer_scale_init_value'] = None
    cfg.model.backbone.update(arch=arch, window_size=8, init_cfg=None)
    cfg.model.data_preprocessor.size = (64, 64)
    for head in (cfg.model.decode_head, cfg.model.get('auxiliary_head', {})):
        if 'channels' in head:
            head.channels = 32
        for part in (head.get('pixel_decoder', {}).get('encoder'), head.get('transformer_decoder')):
            if part:
                part.num_layers = 1
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data_root)
        for step in loader.dataset.pipeline:
            for key, value in (('scale', (256, 64)), ('scales', [64]), ('crop_size', (64, 64))):
                if key in step:
                    step[key] = value
    for step in cfg.tta_pipeline[1].transforms[0]:
        step.scale_factor /= 2


@pytest.mark.slow
@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda path: path.stem)
def test_a_head_trains_validates_and_tests(path, data):
    cfg = copy.deepcopy(published(path))
    small(cfg, next(root for dataset, root in data.items() if f'_{dataset}-' in path.stem))
    screen = io.StringIO()
    failed = rehearse(cfg, screen=screen)
    printed = screen.getvalue()
    assert failed == 0, printed
    assert 'every parameter has a gradient' in printed
    assert re.search(r'5 validation +2 batches; metrics: .*mIoU', printed), printed
