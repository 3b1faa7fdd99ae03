"""Drawn shapes in the layouts of other formats."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from mmgcvit.datasets import draw_shape_classes, draw_shapes

CLASSES = ('circle', 'rectangle', 'triangle')
SPLITS = {'train': 'train2017', 'val': 'val2017'}
ADE = {'train': 'training', 'val': 'validation'}
VALUES = {1: 0, 120: 1, 42: 2, 115: 3}  # of drawn label maps → 0, 1, 2, 3


def draw(root):
    draw_shapes(root / 'shapes', num_train=6, num_val=3, progress=False)
    draw_shape_classes(root / 'classes', num_train=6, num_val=3, progress=False)


def truth(root, split):
    """The drawn annotations of a split."""
    return json.loads(
        (root / f'shapes/coco/annotations/instances_{SPLITS[split]}.json').read_text()
    )


def yolo(root, folder, polygons):
    """Write drawn shapes as YOLO labels: images/{train,val}/, labels/{train,val}/, data.yaml."""
    for split, drawn in SPLITS.items():
        content = truth(root, split)
        for image in content['images']:
            lines = []
            for each in content['annotations']:
                if each['image_id'] != image['id']:
                    continue
                size = np.array([image['width'], image['height']])
                if polygons:
                    (points,) = each['segmentation']
                    values = (np.reshape(points, (-1, 2)) / size).ravel()
                else:
                    corner, extent = np.reshape(each['bbox'], (2, 2)) / size
                    values = [*(corner + extent / 2), *extent]
                label = each['category_id'] - 1
                lines.append(' '.join([str(label), *(f'{value:.10f}' for value in values)]))
            name = image['file_name']
            write(folder / f'labels/{split}/{Path(name).stem}.txt', '\n'.join(lines))
            copy(root / f'shapes/coco/{drawn}/{name}', folder / f'images/{split}/{name}')
    names = ', '.join(CLASSES)
    write(folder / 'data.yaml', f'train: ../images/train\nval: ../images/val\nnames: [{names}]\n')
    return folder


def voc(root, folder):
    """Write drawn shapes as Pascal VOC, with lists of the splits."""
    for split, drawn in SPLITS.items():
        content = truth(root, split)
        names = []
        for image in content['images']:
            name = f'{split}_{image["file_name"]}'
            names.append(Path(name).stem)
            objects = []
            for each in content['annotations']:
                if each['image_id'] == image['id']:
                    x, y, width, height = each['bbox']
                    objects.append(
                        f'<object><name>{CLASSES[each["category_id"] - 1]}</name><bndbox>'
                        f'<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + width}</xmax>'
                        f'<ymax>{y + height}</ymax></bndbox></object>'
                    )
            xml = f'<annotation>{"".join(objects)}</annotation>'
            write(folder / f'Annotations/{Path(name).stem}.xml', xml)
            copy(root / f'shapes/coco/{drawn}/{image["file_name"]}', folder / f'JPEGImages/{name}')
        write(folder / f'ImageSets/Main/{split}.txt', '\n'.join(names))
    return folder


def label_maps(root, folder, change=lambda labels: labels, suffix='_mask.png'):
    """Write drawn label maps to one folder: images/NAME.jpg and masks/NAME_mask.png."""
    for split in ADE.values():
        for path in sorted((root / f'shapes/ADEChallengeData2016/images/{split}').iterdir()):
            copy(path, folder / 'images' / path.name)
            target = folder / f'masks/{path.stem}{suffix}'
            target.parent.mkdir(parents=True, exist_ok=True)
            changed = change(values(drawn_labels(path)))
            if not isinstance(changed, Image.Image):
                changed = Image.fromarray(changed)
            changed.save(target)
    return folder


def drawn_labels(image):
    return Path(str(image).replace('/images/', '/annotations/')).with_suffix('.png')


def values(path):
    """The values of a drawn label map, from 0."""
    drawn = np.asarray(Image.open(path))
    labels = np.zeros_like(drawn)
    for theirs, ours in VALUES.items():
        labels[drawn == theirs] = ours
    return labels


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def image(path, size=(8, 6), mode='RGB', color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
