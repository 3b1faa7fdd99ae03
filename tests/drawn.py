"""Drawn data in the formats of COCO, LVIS and Pascal VOC, and configs that use it."""

import json
import os
from xml.etree import ElementTree

from mmgcvit.datasets import draw_shapes
from mmgcvit.engine.options import walk
from mmgcvit.engine.wrappers import dataset_configs

CLASSES = ('circle', 'rectangle', 'triangle')
PANOPTIC = dict(
    classes=(*CLASSES, 'background'), thing_classes=CLASSES, stuff_classes=('background',)
)
SMALL = dict(scale=(128, 128), scales=[(128, 128), (128, 64)], crop_size=(64, 64))  # of images


def draw(root):
    """Draw a few images with their annotations in all formats; return the folder."""
    draw_shapes(root, num_train=12, num_val=4, progress=False, panoptic=True)
    for split in ('train', 'val'):
        coco = json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())
        _write_voc(root / 'VOCdevkit', split, coco, root / f'coco/{split}2017')
        for image in coco['images']:
            image['coco_url'] = f'http://images.cocodataset.org/{split}2017/{image["file_name"]}'
            image['neg_category_ids'] = image['not_exhaustive_category_ids'] = []
        for category in coco['categories']:
            category.update(frequency='f', image_count=9, instance_count=9)
        path = root / f'coco/annotations/lvis_v1_{split}.json'
        path.write_text(json.dumps(coco))
    return root


def _write_voc(root, split, coco, images):
    for year in ('VOC2007', 'VOC2012'):
        for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
            (root / year / folder).mkdir(parents=True, exist_ok=True)
        names = []
        for image in coco['images']:
            # numbered per split, while VOC keeps all images in a folder
            name = f'{split}_{image["id"]}'
            names.append(name)
            os.link(images / image['file_name'], root / year / f'JPEGImages/{name}.jpg')
            tree = ElementTree.Element('annotation')
            size = ElementTree.SubElement(tree, 'size')
            for key in ('width', 'height'):
                ElementTree.SubElement(size, key).text = str(image[key])
            for annotation in coco['annotations']:
                if annotation['image_id'] != image['id']:
                    continue
                thing = ElementTree.SubElement(tree, 'object')
                ElementTree.SubElement(thing, 'name').text = CLASSES[annotation['category_id'] - 1]
                ElementTree.SubElement(thing, 'difficult').text = '0'
                box = ElementTree.SubElement(thing, 'bndbox')
                x, y, width, height = annotation['bbox']
                edges = dict(xmin=x + 1, ymin=y + 1, xmax=x + width, ymax=y + height)
                for key, value in edges.items():
                    ElementTree.SubElement(box, key).text = str(int(value))
            ElementTree.ElementTree(tree).write(root / year / f'Annotations/{name}.xml')
        name = {'train': 'trainval', 'val': 'test'}[split]
        (root / year / f'ImageSets/Main/{name}.txt').write_text('\n'.join(names))


def use(cfg, root):
    """Change a detector's config in place: drawn data, its classes, and small images."""
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for _, leaf in dataset_configs(loader.dataset, ''):
            leaf.data_root = str(root / ('VOCdevkit' if 'VOC' in leaf.type else 'coco'))
            panoptic = leaf.type == 'CocoPanopticDataset'
            leaf.metainfo = PANOPTIC if panoptic else dict(classes=CLASSES)
            for _, step in list(walk({'pipeline': leaf.pipeline})):
                if isinstance(step, dict):
                    step.update({key: SMALL[key] for key in SMALL.keys() & step.keys()})
    for split in ('val', 'test'):
        evaluators = cfg[f'{split}_evaluator']
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            for key in ('ann_file', 'seg_prefix'):
                if key in evaluator:
                    place = str(evaluator[key]).partition('annotations/')[2]
                    evaluator[key] = str(root / 'coco/annotations' / place)
    stuff = bool(cfg.model.get('panoptic_fusion_head', {}).get('num_stuff_classes'))
    for _, node in walk({'model': cfg.model}):
        if not isinstance(node, dict):
            continue
        if 'num_things_classes' in node:
            node.update(num_things_classes=len(CLASSES), num_stuff_classes=int(stuff))
        if 'num_classes' in node:
            node.num_classes = len(CLASSES)
        if 'class_weight' in node:
            node.class_weight = [1.0] * (len(CLASSES) + stuff) + [0.1]
    return cfg
