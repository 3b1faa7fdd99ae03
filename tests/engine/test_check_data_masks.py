"""Masks that training or evaluation cannot use, and the remedy if there are none."""

import copy
import json
import shutil

import forks
import numpy as np
import pytest
from checked import annotations, apply_remedy, detection, edit, edit_each, names, remedy, texts
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.transforms import LoadAnnotations
from pycocotools.mask import encode

from mmgcvit.engine import check_data, require_data
from mmgcvit.engine.check_data.masks import (
    FLAT,
    IGNORED,
    MISSING,
    NOT_NUMBERS,
    OTHER_KIND,
    RLE_IGNORED,
    RLE_SIZE,
    RLE_SUM,
    SHORT,
    SHORT_IGNORED,
    mask_fault,
)
from mmgcvit.errors import UserError

SIZE = (12, 16)
TRIANGLE = [2, 2, 9, 2, 9, 9]
RLE = {'size': [12, 16], 'counts': [30, 20, 142]}


def compressed(size):
    mask = np.zeros(size, np.uint8, order='F')
    mask[2:9, 1:4] = mask[5:7, 6:12] = 1
    encoded = encode(mask)
    return {**encoded, 'counts': encoded['counts'].decode()}


MASKS = {
    'polygon': (None, [TRIANGLE]),
    'polygons': (None, [TRIANGLE, [1, 1, 3, 1, 3, 4, 1, 4]]),
    'short polygon beside another': (None, [TRIANGLE, [5, 5]]),
    'RLE': (None, RLE),
    'compressed RLE': (None, compressed(SIZE)),
    'missing': (MISSING, None),
    'empty': (MISSING, []),
    'empty dict': (MISSING, {}),
    'flat': (FLAT, TRIANGLE),
    'text': (OTHER_KIND, 'polygon'),
    'number': (OTHER_KIND, 7),
    'point': (SHORT, [[3, 4]]),
    'box': (SHORT, [[3, 4, 5, 6]]),
    'box beside a polygon': (SHORT, [[3, 4, 5, 6], TRIANGLE]),
    'empty polygon': (SHORT, [[]]),
    'odd': (SHORT_IGNORED, [[*TRIANGLE, 4]]),
    'RLE without counts': (OTHER_KIND, {'size': [12, 16]}),
    'RLE without size': (RLE_SIZE, {'counts': [30, 20, 142]}),
}
# pycocotools computes nonsense with these, takes all memory, or ends the process
DANGEROUS = {
    'words': (NOT_NUMBERS, [['2', '2', '9', '2', '9', '9']]),
    'null': (NOT_NUMBERS, [[None, 2, 9, 2, 9, 9]]),
    'NaN': (NOT_NUMBERS, [[float('nan'), 2, 9, 2, 9, 9]]),
    'mixed': (NOT_NUMBERS, [TRIANGLE, 5]),
    'turned RLE': (RLE_SIZE, {'size': [16, 12], 'counts': [30, 20, 142]}),
    'short RLE': (RLE_SUM, {'size': [12, 16], 'counts': [30, 20]}),
    'long RLE': (RLE_SUM, {'size': [12, 16], 'counts': [30, 20, 143]}),
    'short compressed RLE': (RLE_SUM, {**compressed((12, 15)), 'size': [12, 16]}),
    'negative RLE': (RLE_SUM, {'size': [12, 16], 'counts': [-30, 80, 142]}),
}


@pytest.mark.parametrize('case', [*MASKS, *DANGEROUS])
def test_every_kind_of_mask_has_its_fault(case):
    fault, mask = {**MASKS, **DANGEROUS}[case]
    assert mask_fault(mask, SIZE, evaluated=True, polygons_only=False) is fault


@pytest.mark.parametrize('case', MASKS)
def test_a_mask_stops_an_evaluation_if_pycocotools_cannot_read_it(case):
    fault, mask = MASKS[case]
    api = COCO()
    api.imgs = {1: dict(height=SIZE[0], width=SIZE[1])}
    annotation = dict(image_id=1, **({} if mask is None else {'segmentation': copy.deepcopy(mask)}))
    try:
        api.annToRLE(annotation)
    except Exception:
        assert fault is not None and fault not in IGNORED
    else:
        assert fault is None or fault in IGNORED


@pytest.mark.parametrize('case', MASKS)
@pytest.mark.parametrize('poly2mask', [True, False])
def test_a_mask_stops_a_training_if_mmdet_cannot_load_it(case, poly2mask):
    _, mask = MASKS[case]
    instance = dict(bbox=[1, 1, 9, 9], bbox_label=0, ignore_flag=0)
    if mask:  # as CocoDataset
        instance['mask'] = copy.deepcopy(mask)
    fault = mask_fault(mask, SIZE, evaluated=False, polygons_only=not poly2mask)
    load = LoadAnnotations(with_mask=True, poly2mask=poly2mask)
    try:
        loaded = load(dict(instances=[instance], ori_shape=SIZE))
    except Exception:
        assert fault is not None and fault not in IGNORED
    else:
        assert fault is not None or not loaded['gt_ignore_flags'][0]
        assert not loaded['gt_ignore_flags'][0] or fault is not None


def test_rle_is_ignored_if_only_polygons_are_loaded():
    assert mask_fault(RLE, SIZE, evaluated=False, polygons_only=True) is RLE_IGNORED


@pytest.mark.parametrize(('split', 'name'), [('train2017', 'train'), ('val2017', 'val, test')])
@pytest.mark.parametrize('mask', [[], TRIANGLE, [['a', 'b', 'c', 'd', 'e', 'f']]])
def test_a_bad_mask_is_named_with_its_ids_in_every_split(shapes, split, name, mask):
    def change(content):
        content['annotations'][1].update(id=4321, segmentation=mask)

    edit(shapes, change, split)
    image = json.loads(annotations(shapes, split).read_text())['annotations'][1]['image_id']
    (text,) = texts(check_data(detection(shapes)))
    assert text.startswith(f'[masks] {name}: 1 annotations of {annotations(shapes, split)}')
    assert f'id 4321 of image {image})' in text


def test_a_mask_that_only_pycocotools_refuses_stops_in_validation_alone(shapes):
    box = [[1, 1, 9, 9]]
    edit(shapes, lambda c: c['annotations'][0].update(segmentation=box), 'train2017')
    edit(shapes, lambda c: c['annotations'][0].update(segmentation=box), 'val2017')
    found = check_data(detection(shapes)).problems
    assert [(each.name, each.stops) for each in found] == [('masks', False), ('masks', True)]
    assert 'are ignored' in found[0].text


def test_a_training_stops_if_no_mask_is_left(shapes):
    edit_each(shapes, segmentation=[[1, 1, 9, 9]])
    with pytest.raises(UserError, match=r'\[masks\] train: .* are ignored, .*: draw polygons'):
        require_data(detection(shapes))


@pytest.mark.parametrize(
    ('fault', 'check'),
    [(dict(segmentation=[[2, 2, 8, 8, 5]]), 'masks'), (dict(iscrowd=1), 'instances')],
)
def test_a_dataset_of_several_with_nothing_to_train_on_is_named(shapes, fault, check):
    cfg = detection(shapes)
    good = cfg.train_dataloader.dataset
    bad = dict(copy.deepcopy(good), ann_file='annotations/instances_bad.json')
    shutil.copy(annotations(shapes), annotations(shapes, 'bad'))
    edit_each(shapes, 'bad', **fault)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[good, bad])
    (text,) = texts(check_data(cfg))
    assert text.startswith(f'[{check}] train: ') and 'instances_bad.json' in text
    assert 'or remove train_dataloader.dataset.datasets.1;' in text
    apply_remedy(cfg, text)
    require_data(cfg)


def test_rle_without_poly2mask_is_named(shapes):
    cfg = detection(shapes)
    cfg.train_dataloader.dataset.pipeline[1].poly2mask = False
    image = json.loads(annotations(shapes).read_text())['images'][0]
    size = [image['height'], image['width']]
    rle = {'size': size, 'counts': [10, 5, size[0] * size[1] - 15]}
    edit(shapes, lambda c: c['annotations'][0].update(segmentation=rle))
    (text,) = texts(check_data(cfg))
    assert 'id 101 of image 1) are ignored, because LoadAnnotations(poly2mask=False)' in text
    cfg.train_dataloader.dataset.pipeline[1].poly2mask = True
    assert texts(check_data(cfg)) == []


def test_masks_do_not_matter_where_nothing_uses_them(shapes):
    for split in ('train2017', 'val2017'):
        edit_each(shapes, split, segmentation=[])
    cfg = detection(shapes)
    cfg.model.roi_head.mask_head = None
    for split in ('train', 'val', 'test'):
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            if 'with_mask' in step:
                step.with_mask = False
    cfg.val_evaluator.metric = cfg.test_evaluator.metric = 'bbox'
    cfg.default_hooks.checkpoint.save_best = 'coco/bbox_mAP'
    assert texts(check_data(cfg)) == []


def test_instances_that_the_dataset_drops_need_no_mask(shapes):
    edit(shapes, lambda c: c['annotations'][0].update(segmentation=[], ignore=True))
    report = check_data(detection(shapes))
    assert texts(report) == []
    assert 'id 101 of image 1) are not used' in report.notes[0]


def watch_masks(cfg):
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/segm_mAP_50')]
    return cfg


def test_data_without_masks_have_one_remedy_that_works(shapes):
    for split in ('train2017', 'val2017'):
        edit_each(shapes, split, segmentation=[])
    cfg = watch_masks(detection(shapes))
    report = check_data(cfg)
    assert names(report) == ['masks', 'masks']
    first, second = texts(report)
    assert '--cfg-options' not in second and 'use boxes only, as above' in second
    assert 'default_hooks.checkpoint.save_best=coco/bbox_mAP' in remedy(first)
    apply_remedy(cfg, first)
    assert texts(check_data(cfg)) == []
    assert cfg.custom_hooks[0].monitor == 'coco/bbox_mAP_50'


def test_a_validation_without_masks_has_a_remedy_of_its_own(shapes):
    edit(shapes, lambda c: c['annotations'][0].pop('segmentation'), 'val2017')
    cfg = watch_masks(detection(shapes))
    (text,) = texts(check_data(cfg))
    assert 'model' not in ' '.join(remedy(text))
    apply_remedy(cfg, text)
    assert texts(check_data(cfg)) == []


@pytest.mark.slow
@pytest.mark.parametrize('config', ['mask_rcnn_tiny', 'cascade_tiny'])
def test_the_remedy_for_data_without_masks_trains(shapes, tmp_path, config):
    for split in ('train2017', 'val2017'):
        edit_each(shapes, split, segmentation=[])
    config = f'tests/data/configs/{config}.py'
    settings = dict(out=tmp_path / 'printed', SHAPES=str(shapes))
    arguments = (config, '--work-dir', tmp_path / 'work')
    code, printed = forks.run('tools/train.py', *arguments, **settings)
    assert code == 1
    (line,) = (line for line in printed.splitlines() if 'train: ' in line and '[masks]' in line)
    # with any score, since a model that detects nothing has no metrics
    options = ('--cfg-options', *remedy(line), 'model.test_cfg.rcnn.score_thr=0.0')
    code, printed = forks.run('tools/train.py', *arguments, *options, **settings)
    assert code == 0, printed[-3000:]
    assert 'coco/bbox_mAP' in printed
    last = (tmp_path / 'work' / 'last_checkpoint').read_text()
    code, printed = forks.run('tools/test.py', config, last, *options, **settings)
    assert code == 0, printed[-3000:]
