"""Panoptic annotations in COCO's format, in which each pixel belongs to one segment.

A label map stores the id of each pixel's segment in the color of the pixel: red + 256 green +
65536 blue. The id 0 stands for pixels without a segment. A JSON file lists the segments of each
image with their categories: things, of which each object is a segment, and stuff.

H, W: height and width of an image in pixels.
"""

import numpy as np

from .scene import CLASSES, Scene

STUFF = ('background',)


def segment_ids(colors: np.ndarray) -> np.ndarray:
    """Return the ids of a label map, int32, (H, W).

    Args:
        colors: RGB image, uint8, (H, W, 3).
    """
    return colors.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def segment_colors(ids: np.ndarray) -> np.ndarray:
    """Return the RGB image, uint8, (H, W, 3), of a label map (H, W) with ids below 2**24."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


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
