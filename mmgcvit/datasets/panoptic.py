"""Panoptic annotations in COCO's format, in which each pixel belongs to one segment.

A JSON file lists the segments of each image with their categories: things, of which each object is
a segment, and stuff. Label maps store the segment of each pixel, see :mod:`mmgcvit.panoptic`.

H, W: height and width of an image in pixels.
"""

import numpy as np

from ..panoptic import segment_ids
from .scene import CLASSES, Scene

STUFF = ('background',)


def panoptic_categories() -> list[dict]:
    """Return the categories of the drawn shapes, and of the background as stuff."""
    return [
        dict(id=number, name=name, supercategory=kind, isthing=int(kind == 'shape'))
        for number, (name, kind) in enumerate(
            [*((name, 'shape') for name in CLASSES), *((name, 'stuff') for name in STUFF)], 1
        )
    ]


def panoptic_annotation(scene: Scene, image_id: int) -> tuple[np.ndarray, dict]:
    """Return the label map of a scene, int32, (H, W), and its annotation without ``file_name``."""
    category_ids = {category['name']: category['id'] for category in panoptic_categories()}
    height, width = scene.image.shape[:2]
    ids, segments = np.zeros((height, width), np.int32), []
    masks = [~np.any(scene.visible, axis=0), *scene.visible]
    names = [*STUFF, *(shape.name for shape in scene.shapes)]
    for number, (name, mask) in enumerate(zip(names, masks, strict=True), 1):
        if not mask.any():
            continue
        # ids that differ in brightness, so that the file shows the segments
        segment_id = int(segment_ids(np.full(3, 40 * number, np.uint8)))
        ids[mask] = segment_id
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        segments.append(
            dict(
                id=segment_id,
                category_id=category_ids[name],
                area=int(mask.sum()),
                bbox=box,
                iscrowd=0,
            )
        )
    return ids, dict(image_id=image_id, segments_info=segments)
