"""The instances of a COCO file, as mmdet's CocoDataset uses them."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .report import Findings

NUMBERS = ('area', 'height', 'width')
ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


def check_annotations(dataset: Any, content: dict, masks: bool, found: Findings) -> None:
    path = dataset.ann_file
    annotations = content.get('annotations')
    if not isinstance(annotations, list):
        if not dataset.test_mode:
            found.stop(f'{path} has no list \'annotations\': export it with them ("instances")')
        return
    bad = first_without(annotations, ANNOTATION_KEYS)
    if bad is not None:
        found.stop(
            f"{path}: {bad} of 'annotations' lacks one of {', '.join(ANNOTATION_KEYS)}, or has no "
            'number there: export it again'
        )
        return
    tally = _Tally(content, found.classes or ())
    for annotation in annotations:
        tally.add(annotation, masks and not dataset.test_mode)
    found.counts = {name: tally.instances[name] for name in found.classes or ()}
    found.annotated = len(tally.annotated)
    tally.report(path, found)
    _check_uniqueness(content, path, found)
    _check_filter(dataset, content['images'], tally.annotated, found)
    if dataset.test_mode and any('iscrowd' not in a for a in annotations):
        found.stop(f"{path}: annotations lack 'iscrowd', which COCO's metric needs: add 0 to each")


def first_without(entries: Iterable[Any], keys: tuple[str, ...]) -> str | None:
    """Name the first entry that is no dict with all keys, and numbers where they belong."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            return f'entry {number}'
        if any(key in NUMBERS and not _is_number(entry[key]) for key in keys):
            return f'entry {number}'
    return None


class _Tally:
    """Counts of the annotations as mmdet uses them, and examples of bad ones."""

    def __init__(self, content: dict, classes: Iterable[str]) -> None:
        self.images = {image['id']: image for image in content['images']}
        self.names = {c['id']: c['name'] for c in content['categories']}
        self.classes = set(classes)
        self.instances: Counter[str] = Counter()
        self.annotated: set = set()
        self.bad: dict[str, list] = {}

    def add(self, annotation: dict, needs_mask: bool) -> None:
        image, box = self.images.get(annotation['image_id']), annotation['bbox']
        name = self.names.get(annotation['category_id'])
        if image is None:
            self._mark('image', annotation)
        if name is None:
            self._mark('category', annotation)
        if not _is_box(box):
            self._mark('box', annotation)
            return
        if image is None or name not in self.classes:
            return
        x, y, width, height = box
        right, bottom = image['width'], image['height']
        if min(x, y) < -1 or x + width > right + 1 or y + height > bottom + 1:
            self._mark('outside', annotation)
        # the rules of mmdet's CocoDataset
        overlaps = min(x + width, right) > max(x, 0) and min(y + height, bottom) > max(y, 0)
        if annotation.get('ignore') or not overlaps or annotation['area'] <= 0:
            self._mark('dropped', annotation)
            return
        if width < 1 or height < 1:
            self._mark('dropped', annotation)
            return
        if needs_mask and not annotation.get('segmentation'):
            self._mark('mask', annotation)
        self.instances[name] += 1
        self.annotated.add(annotation['image_id'])

    def _mark(self, kind: str, annotation: dict) -> None:
        self.bad.setdefault(kind, []).append(annotation['id'])

    def report(self, path: str, found: Findings) -> None:
        def shown(kind: str) -> str:
            return (
                f'{len(self.bad[kind])} annotations of {path}, as that with id {self.bad[kind][0]}'
            )

        if 'box' in self.bad:
            found.stop(
                f'{shown("box")}, have a bbox that is not four finite numbers x, y, width, height '
                'with sides of at least 0: correct them'
            )
        if 'mask' in self.bad:
            found.stop(
                f'{shown("mask")}, have no segmentation, which the mask head is trained on: add '
                'it, or take model.roi_head.mask_head out'
            )
        if 'image' in self.bad:
            found.warn(f'{shown("image")}, have an image_id of no image: correct or remove them')
        if 'category' in self.bad:
            found.warn(f'{shown("category")}, have a category_id of no category: correct them')
        if 'outside' in self.bad:
            found.warn(
                f'{shown("outside")}, have a box that reaches beyond its image: clip it, or if '
                'its values are corners x1, y1, x2, y2, make them x, y, width, height'
            )
        if 'dropped' in self.bad:
            found.notes.append(
                f'{shown("dropped")}, are not used (ignored, or smaller than a pixel)'
            )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_uniqueness(content: dict, path: str, found: Findings) -> None:
    for key in ('images', 'annotations'):
        repeated = [i for i, times in Counter(e['id'] for e in content[key]).items() if times > 1]
        if repeated:
            found.stop(
                f'{path}: {len(repeated)} ids of {key!r} occur several times, as {repeated[0]}: '
                'number them anew'
            )


def _check_filter(dataset: Any, images: list[dict], annotated: set, found: Findings) -> None:
    """Count what mmdet leaves for training, by the rules of its CocoDataset."""
    settings = dataset.filter_cfg
    if dataset.test_mode or settings is None:
        return
    least = settings.get('min_size', 0)
    left = sum(
        min(image['width'], image['height']) >= least
        and (not settings.get('filter_empty_gt') or image['id'] in annotated)
        for image in images
    )
    if left == 0:
        found.stop(
            f'no image is left for training: filter_cfg={dict(settings)} drops all {len(images)}, '
            f'{len(annotated)} of them with an instance of the classes; correct the annotations, '
            'the classes or filter_cfg'
        )
    elif left < len(images):
        found.notes.append(f'filter_cfg leaves {left} of {len(images)} images for training')
