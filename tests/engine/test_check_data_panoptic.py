"""Spoiled panoptic data: what is found, and what is proposed."""

import copy
import json
import shutil
import sys

import cv2
import drawn as drawn_data
import pytest
from checked import apply_remedy, names, texts

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import check_data, load_config

CONFIG = 'configs/detection/panoptic-fpn_gcvit-t_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
    root = tmp_path_factory.mktemp('panoptic') / 'shapes'
    draw_shapes(root, num_train=4, num_val=6, progress=False, panoptic=True)
    return root, load_config(CONFIG)


@pytest.fixture
def data(untouched, tmp_path):
    """A config, and the folder of its annotations to spoil."""
    root, cfg = untouched
    shutil.copytree(root, tmp_path / 'shapes')
    return drawn_data.use(copy.deepcopy(cfg), tmp_path / 'shapes'), tmp_path / 'shapes/coco'


def edit(coco, change, split='train2017'):
    path = coco / f'annotations/panoptic_{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_map(coco):
    return coco / 'annotations/panoptic_train2017/000000000001.png'


def test_drawn_data_has_no_problems(data):
    report = check_data(data[0])
    assert (texts(report), report.notes) == ([], [])
    (train, counts), (val, _) = report.datasets
    assert (train, val) == ('train', 'val, test')
    assert (counts.images, counts.annotated, counts.unit) == (4, 4, 'segments')
    assert counts.classes['background'] == 4
    assert sum(counts.classes.values()) > 8


def lack(key, field):
    def change(content):
        entry = content[key][0]
        del (entry['segments_info'][0] if field == 'area' else entry)[field]

    return lambda coco: edit(coco, change)


def set_segment(**values):
    return lambda coco: edit(coco, lambda c: c['annotations'][0]['segments_info'][0].update(values))


def without_segments(coco):
    edit(coco, lambda c: [each.update(segments_info=[]) for each in c['annotations']])


def instances(coco):
    folder = coco / 'annotations'
    shutil.copy(folder / 'instances_train2017.json', folder / 'panoptic_train2017.json')


def resized(coco):
    path = str(first_map(coco))
    cv2.imwrite(path, cv2.imread(path)[::2, ::2])


def as_jpeg(coco):
    """Lossy compression changes the ids at the edges."""
    encoded = cv2.imencode('.jpg', cv2.imread(str(first_map(coco))))[1]
    first_map(coco).write_bytes(encoded.tobytes())


@pytest.mark.parametrize(
    ('spoil', 'check', 'message'),
    [
        (lack('categories', 'isthing'), 'panoptic-fields', "0 of 'categories' lacks one of id,"),
        (lack('annotations', 'area'), 'panoptic-fields', 'a segment of image 1 lacks one of id,'),
        (instances, 'panoptic-fields', "in COCO's panoptic format, not as instances"),
        (set_segment(category_id=9), 'references', 'has the category_id 9, which is not'),
        (
            lambda coco: edit(coco, lambda c: c['annotations'][0].update(image_id=99)),
            'references',
            '000000000001.png has the image_id 99, which is not',
        ),
        (without_segments, 'reading', 'no image is left for training'),
        (
            lambda coco: first_map(coco).unlink(),
            'label-map-files',
            '1 of 4 label maps are missing, for example ',
        ),
        (resized, 'segments', 'use label maps of the size of their images'),
        (as_jpeg, 'segments', ' segments that '),
        (set_segment(id=7), 'segments', '000000000001.png has no pixel of segment 7, which '),
        (
            lambda coco: first_map(coco).write_text('x'),
            'segments',
            '000000000001.png cannot be read as an image (',
        ),
    ],
)
def test_what_is_spoiled_is_named(data, spoil, check, message):
    cfg, coco = data
    spoil(coco)
    report = check_data(cfg)
    assert names(report) == [check]
    (text,) = texts(report)
    assert message in text and text.startswith(f'[{check}] train: ')


def test_classes_are_compared_with_the_categories(data):
    cfg, _ = data
    for split in ('train', 'val', 'test'):
        metainfo = cfg[f'{split}_dataloader'].dataset.metainfo
        metainfo['classes'] = ('background', *drawn_data.CLASSES)
    found = texts(check_data(cfg))
    assert len(found) == 2
    assert all('are in another order than the categories' in text for text in found)


def test_an_evaluator_of_other_annotations(data):
    cfg, coco = data
    cfg.val_evaluator.ann_file = str(coco / 'annotations/panoptic_train2017.json')
    (text,) = texts(check_data(cfg))
    assert 'val_evaluator.ann_file is ' in text
    apply_remedy(cfg, text)
    assert texts(check_data(cfg)) == []


def test_transforms_that_need_another_package(data, monkeypatch):
    cfg, _ = data
    monkeypatch.setitem(sys.modules, 'panopticapi', None)
    cfg.train_dataloader.dataset.pipeline[1].type = 'LoadPanopticAnnotations'
    (text,) = texts(check_data(cfg))
    assert 'panopticapi is not installed' in text
    assert 'Or use mmgcvit.LoadPanopticAnnotations and mmgcvit.PanopticMetric' in text
