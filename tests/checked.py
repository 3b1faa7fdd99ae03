"""Configs and drawn data for the tests of the data check."""

import copy
import functools
import json
import re

import numpy as np
from PIL import Image

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine import load_config
from mmgcvit.engine.options import parse_value

DETECTION = 'configs/detection/custom_coco.py'
SEGMENTATION = 'configs/segmentation/custom_dataset.py'
SPLITS = ('train', 'val', 'test')


def draw(root):
    """Draw shapes as COCO, and with label values from 0, as a user's own label maps have them."""
    draw_shapes(root, num_train=6, num_val=3, progress=False)
    values = {1: 0, 120: 1, 42: 2, 115: 3}
    for path in root.glob('ADEChallengeData2016/annotations/*/*.png'):
        labels = np.asarray(Image.open(path))
        own = np.zeros_like(labels)
        for theirs, ours in values.items():
            own[labels == theirs] = ours
        Image.fromarray(own).save(path)
    return root


@functools.cache
def published(path):
    return load_config(path)


def detection(shapes, config=DETECTION):
    root = shapes / 'coco'
    options = {f'{split}_dataloader.dataset.data_root': str(root) for split in SPLITS}
    for split in ('val', 'test'):
        options[f'{split}_evaluator.ann_file'] = str(annotations(shapes, 'val2017'))
    cfg = copy.deepcopy(published(config))
    cfg.merge_from_dict(options)
    return cfg


def segmentation(shapes):
    root = str(shapes / 'ADEChallengeData2016')
    cfg = copy.deepcopy(published(SEGMENTATION))
    cfg.merge_from_dict({f'{split}_dataloader.dataset.data_root': root for split in SPLITS})
    return cfg


def annotations(shapes, split='train2017'):
    return shapes / f'coco/annotations/instances_{split}.json'


def edit(shapes, change, split='train2017'):
    """Change the content of an annotation file."""
    path = annotations(shapes, split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_each(shapes, split='train2017', **values):
    """Set fields of every annotation."""
    edit(shapes, lambda c: [a.update(copy.deepcopy(values)) for a in c['annotations']], split)


def label_files(shapes, split='training'):
    return sorted((shapes / f'ADEChallengeData2016/annotations/{split}').glob('*.png'))


def texts(report):
    return [problem.text for problem in report.problems]


def names(report):
    return [problem.name for problem in report.problems]


def remedy(text):
    """The arguments for --cfg-options that a problem proposes."""
    return re.findall(r'[\w.]+=\S+', text.partition('--cfg-options ')[2].partition(', or')[0])


def apply_remedy(cfg, text):
    options = (argument.partition('=') for argument in remedy(text))
    cfg.merge_from_dict({name: parse_value(value) for name, _, value in options})
