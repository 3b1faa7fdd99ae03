"""Masks of instances in a large image. This module needs mmdet.

H, W: height and width of the image, h, w: of a tile; in pixels. N: number of masks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco
from mmdet.structures.mask import BitmapMasks


class PlacedMasks(BitmapMasks):
    """Masks as COCO RLE, which are decoded one by one when they are read as arrays.

    Ten bitmaps of an image of 10000x10000 pixels take 1 GB. mmdet's CocoMetric reads the RLE, its
    other metrics iterate over the masks, and its visualizer reads the array of the masks that it
    draws.

    Args:
        masks: Run lengths of each mask: ``size`` (H, W) and compressed ``counts``.
        height: H.
        width: W.
    """

    def __init__(self, masks: Sequence[dict[str, Any]], height: int, width: int) -> None:
        self.masks = list(masks)
        self.height = height
        self.width = width

    @classmethod
    def at(cls, masks: np.ndarray, shape: tuple[int, int], top: int, left: int) -> 'PlacedMasks':
        """Return the masks of a tile as masks of the image.

        Args:
            masks: Masks, (N, h, w), bool.
            shape: H, W.
            top: Row of the tile's first row in the image.
            left: Column of its first column.
        """
        return cls([_run_lengths(mask, shape, top, left) for mask in masks], *shape)

    @classmethod
    def cat(cls, masks: 'Sequence[PlacedMasks]') -> 'PlacedMasks':
        """Concatenate masks of the same H, W."""
        return cls([mask for each in masks for mask in each.masks], *masks[0].size)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def __getitem__(self, index: int | slice) -> 'dict[str, Any] | PlacedMasks':
        """Return the run lengths of one mask, or the masks of a slice."""
        if isinstance(index, slice):
            return PlacedMasks(self.masks[index], *self.size)
        return self.masks[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield each mask, (H, W), uint8."""
        return map(coco.decode, self.masks)

    # metrics such as LVISMetric expect a tensor, convert it, and iterate over the result
    def detach(self) -> 'PlacedMasks':
        """Return the masks themselves."""
        return self

    def cpu(self) -> 'PlacedMasks':
        """Return the masks themselves."""
        return self

    def numpy(self) -> 'PlacedMasks':
        """Return the masks themselves, an iterable of arrays."""
        return self

    def astype(self, dtype: type) -> np.ndarray:
        """Return all masks, (N, H, W), in a type of numpy."""
        return self.to_ndarray().astype(dtype)

    def to_ndarray(self) -> np.ndarray:
        """Return all masks, (N, H, W), uint8."""
        return np.stack(list(self)) if self.masks else np.zeros((0, *self.size), np.uint8)


def _run_lengths(mask: np.ndarray, shape: tuple[int, int], top: int, left: int) -> dict[str, Any]:
    """Return COCO's run lengths of a mask (h, w) in an image of ``shape``, column by column."""
    height, width = shape
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
    padded[:, 1:-1] = mask.T
    steps = np.diff(padded)  # 1 before a run within a column, and -1 after it
    columns, rows = np.nonzero(steps)
    ends = (columns + left) * height + rows + top
    # a run down to the last row goes on in the next column
    joined = np.flatnonzero(ends[1:] == ends[:-1])
    ends = np.delete(ends, [*joined, *(joined + 1)])
    counts = np.diff(ends, prepend=0, append=height * width)
    if not counts[-1]:
        counts = counts[:-1]  # as COCO's encoder
    return coco.frPyObjects(dict(size=[height, width], counts=counts.tolist()), height, width)
