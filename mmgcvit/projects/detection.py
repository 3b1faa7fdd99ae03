"""Images with objects, independent of the format that they were read from."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

from ..errors import UserError
from ..files import write_atomically
from ..task import DETECTION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import Folder
from .splits import divide


@dataclass
class Picture:
    """An image and its objects.

    Attributes:
        path: Path relative to the folder of the data.
        size: Width and height in pixels, as training loads the image.
        objects: COCO annotations without ids; ``name`` is the class.
        split: The split that the folder assigns: 'train', 'val', 'test', or None.
    """

    path: Relative
    size: tuple[int, int]
    objects: list[dict[str, Any]]
    split: str | None

    @property
    def classes(self) -> set[str]:
        return {each['name'] for each in self.objects}


def box_of(points: Sequence[float]) -> list[float]:
    """Return the box x, y, width, height around a polygon x1, y1, x2, y2, …"""
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def area_of(points: Sequence[float]) -> float:
    """Return the area within a polygon x1, y1, x2, y2, …"""
    xs, ys = points[::2], points[1::2]
    last = zip((xs[-1], *xs), (ys[-1], *ys), xs, ys, strict=False)
    return abs(sum(x * v - u * y for x, y, u, v in last)) / 2


def finish(
    folder: Folder,
    project: Path,
    pictures: Sequence[Picture],
    names: Sequence[str],
    in_place: dict[str, Split] | None = None,
) -> Data:
    """Divide images into splits, and write COCO annotations of each to the project.

    Args:
        folder: The folder of the data.
        project: Folder to write to.
        pictures: The images.
        names: Class names, in the order of the labels.
        in_place: Splits whose annotation files are used in place, so that nothing is written.

    Raises:
        UserError: If there are no objects, or one image is in both splits.
    """
    if not any(picture.objects for picture in pictures):
        hint = f' ({folder.notes[-1]})' if folder.notes else ''
        raise UserError(
            f'none of the {len(pictures)} images of {folder.path} has an annotated object{hint}: '
            'annotate some of them, or correct the annotations'
        )
    train, val = divide(pictures, folder)
    number = Counter(each['name'] for picture in train for each in picture.objects)
    classes = tuple(name for name in dict.fromkeys(names) if number[name])
    if not classes:
        raise UserError(
            f'none of the {len(train)} training images has an annotated object: annotate some of '
            'them, or correct the splits'
        )
    folder.leave_out(
        [repr(name) for name in names if not number[name]],
        'classes without an object in the training images',
    )
    objects = [each for part in (train, val) for picture in part for each in picture.objects]
    masked = sum(bool(each.get('segmentation')) for each in objects)
    if 0 < masked < len(objects):
        folder.notes.append(
            f'{len(objects) - masked} of {len(objects)} objects have no mask, so only boxes are '
            'used: add the masks to train a mask head'
        )
    if in_place is None:
        in_place = {
            split: _write(project, split, part, classes)
            for split, part in (('train', train), ('val', val))
        }
    return Data(
        DETECTION,
        classes,
        in_place['train'],
        in_place['val'],
        typical_size([picture.size for picture in train]),
        has_masks=masked == len(objects),
        has_empty_images=not all(picture.objects for picture in train),
    )


def _write(project: Path, split: str, pictures: Sequence[Picture], classes: Sequence[str]) -> Split:
    ids = {name: number for number, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        width, height = picture.size
        images.append(dict(id=image_id, file_name=str(picture.path), width=width, height=height))
        for each in picture.objects:
            if each['name'] in ids:
                annotation = dict(each, id=len(annotations) + 1, image_id=image_id)
                annotation['category_id'] = ids[annotation.pop('name')]
                annotations.append(annotation)
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=number, name=name) for name, number in ids.items()],
    )
    file = f'{ANNOTATIONS}/{split}.json'
    write_atomically(project / file, json.dumps(content).encode())
    return Split(len(images), dict(ann_file=in_project(file), data_prefix=dict(img='')))
