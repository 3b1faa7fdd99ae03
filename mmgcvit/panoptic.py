"""Label maps of COCO's panoptic format: the color of a pixel is the id of its segment.

The id is red + 256 green + 65536 blue. The id 0 stands for pixels without a segment.

H, W: height and width of an image in pixels.
"""

import numpy as np


def segment_ids(colors: np.ndarray) -> np.ndarray:
    """Return the ids of a label map, int32, (H, W).

    Args:
        colors: RGB image, uint8, (H, W, 3).
    """
    return colors.astype(np.int32) @ np.array([1, 256, 65536], np.int32)


def segment_colors(ids: np.ndarray) -> np.ndarray:
    """Return the RGB image, uint8, (H, W, 3), of a label map (H, W) with ids below 2**24."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
