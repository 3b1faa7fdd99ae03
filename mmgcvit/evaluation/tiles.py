"""Testing of large images in tiles, whose predictions are merged into those of the image.

H, W: height and width of an image in pixels, N: number of predictions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, Compose
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..errors import UserError
from ..progress import with_progress
from ..registry import MODELS

NMS_THRESHOLD = 0.5  # as in mmdet's detectors and test-time augmentation
BORDER = 0.01  # of a tile: a box that ends within is cut
PAIRS = 1_000_000  # of boxes that are compared at once


@dataclass(frozen=True)
class Span:
    """Range of a tile along one axis, and its core: the range that it contributes to label maps.

    The border between the cores of two neighbors is in the middle of their overlap.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Return the tiles along one axis of an image, all of the same size.

    Args:
        length: Height or width of the image in pixels.
        size: Size of the tiles. An image that is not larger is one tile.
        overlap: Minimum overlap of neighbors in pixels. The last two may overlap more.
    """
    number = max(-(-(length - overlap) // (size - overlap)), 1)
    starts = [max(min(index * (size - overlap), length - size), 0) for index in range(number)]
    middles = [(start + before + size) // 2 for before, start in pairwise(starts)]
    cores = [0, *middles, length]
    return [
        Span(start, min(start + size, length), *core)
        for start, core in zip(starts, pairwise(cores), strict=True)
    ]


class Tiles:
    """The tiles of a loaded image, from top left to bottom right.

    Tiles are processed during iteration, so that their inputs are not all in memory at once.

    Args:
        results: Results of the transforms that have loaded the image, with ``img``, (H, W, C).
        size: Height and width of a tile in pixels.
        overlap: Pixels that neighbors share.
        pipeline: Transforms of a tile.
    """

    def __init__(self, results: dict[str, Any], size: int, overlap: int, pipeline: Compose) -> None:
        self.results = results
        self.pipeline = pipeline
        self.shape = results['img'].shape[:2]
        rows, columns = (spans(length, size, overlap) for length in self.shape)
        self.windows = [(row, column) for row in rows for column in columns]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, column in self.windows:
            image = self.results['img'][row.start : row.stop, column.start : column.stop]
            shape = image.shape[:2]
            yield self.pipeline(dict(self.results, img=image, img_shape=shape, ori_shape=shape))


# in mmengine's registry: the scopes of mmdet and mmseg look there, and importing other transforms
# of this package may require libraries that are not installed
@TRANSFORMS.register_module()
class CutTiles(BaseTransform):
    """Return the :class:`Tiles` of a loaded image as ``inputs``, with the image's data sample.

    Args:
        size: Height and width of a tile in pixels.
        overlap: Pixels that neighbors share.
        transforms: Transforms that follow the loading of the image. Each tile passes them without
            annotations, like an image of its own. The complete image passes them for its data
            sample.
    """

    def __init__(self, size: int, overlap: int, transforms: Sequence[Any]) -> None:
        self.size = size
        self.overlap = overlap
        self.pipeline = Compose(list(transforms))
        self.transforms = self.pipeline.transforms
        self.of_tile = Compose([t for t in self.transforms if 'Annotation' not in type(t).__name__])

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        loaded = {key: value for key, value in results.items() if not key.startswith('gt_')}
        packed = self.pipeline(results)
        if packed is not None:
            packed['inputs'] = Tiles(loaded, self.size, self.overlap, self.of_tile)
        return packed


@MODELS.register_module()
class TiledModel(BaseTTAModel):
    """Predict the :class:`Tiles` of images and merge the predictions of each image.

    Boxes are shifted to their position in the image, and duplicates from different tiles are
    removed, see :func:`keep`. Masks are stored as COCO RLE. Label maps are stitched from the cores
    of the tiles, see :class:`Span`. Other predictions, such as the scores of pixels, are dropped.

    Args:
        module: Detector or segmentor.
        batch_size: Number of tiles per batch.
        data_preprocessor: Data preprocessor of the module, unless its config contains one.
    """

    def __init__(
        self,
        module: dict | nn.Module,
        batch_size: int = 1,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        if data_preprocessor is not None and isinstance(module, dict):
            # a Runner does the same with the model of a config
            module.setdefault('data_preprocessor', data_preprocessor)
        super().__init__(module)
        self.batch_size = batch_size

    def test_step(self, data: dict[str, Any]) -> list[BaseDataElement]:
        """Return the data samples of a batch of images with their predictions.

        Args:
            data: ``inputs``, the :class:`Tiles` of each image, and ``data_samples``.

        Raises:
            UserError: If the model predicts panoptic maps.
        """
        pairs = zip(data['inputs'], data['data_samples'], strict=True)
        return [self._predict(tiles, sample) for tiles, sample in pairs]

    def merge_preds(self, data_samples_list: Any) -> Any:
        """Not used, because the predictions of all tiles would need too much memory."""
        raise NotImplementedError

    def _predict(self, tiles: Tiles, sample: BaseDataElement) -> BaseDataElement:
        merged = None
        inputs = iter(tiles)
        starts = range(0, len(tiles.windows), self.batch_size)
        what = 'tiles' if self.batch_size == 1 else f'batches of {self.batch_size} tiles'
        what = f'{sample.get("img_path", "image")}: {what}'
        for number in with_progress(starts, what, partial(print_log, logger='current')):
            batch = pseudo_collate(list(islice(inputs, self.batch_size)))
            found = self.module.test_step(batch)
            merged = merged or _merger(found[0], tiles.shape)
            windows = tiles.windows[number : number + self.batch_size]
            for window, each in zip(windows, found, strict=True):
                merged.add(each, *window)
        assert merged is not None  # an image has at least one tile
        merged.write(sample)
        return sample


def _merger(found: BaseDataElement, shape: tuple[int, int]) -> '_Instances | _LabelMap':
    if 'pred_instances' in found and 'pred_panoptic_seg' not in found:
        return _Instances(shape)
    if 'pred_sem_seg' in found and 'pred_panoptic_seg' not in found:
        return _LabelMap(shape)
    kinds = ', '.join(key for key in found.all_keys() if key.startswith('pred_'))
    raise UserError(
        '--tiles merges boxes, masks and label maps, but this model predicts '
        f'{kinds or "none of them"}: test without --tiles'
    )


class _LabelMap:
    """Label map of an image, (1, H, W), int16, stitched from those of its tiles."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.labels = torch.zeros((1, *shape), dtype=torch.int16)

    def add(self, found: BaseDataElement, row: Span, column: Span) -> None:
        inside = np.s_[
            :,
            row.core_start - row.start : row.core_stop - row.start,
            column.core_start - column.start : column.core_stop - column.start,
        ]
        place = np.s_[:, row.core_start : row.core_stop, column.core_start : column.core_stop]
        self.labels[place] = found.pred_sem_seg.data[inside].to(self.labels)

    def write(self, sample: BaseDataElement) -> None:
        sample.set_data(dict(pred_sem_seg=PixelData(data=self.labels)))


class _Instances:
    """Instances of all tiles, in coordinates of the image."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.found: list[InstanceData] = []
        self.cut: list[Tensor] = []

    def add(self, found: BaseDataElement, row: Span, column: Span) -> None:
        instances = found.pred_instances.cpu()
        if 'masks' in instances:
            from mmdet.structures.mask import mask2bbox

            from .placed_masks import PlacedMasks

            masks = instances.pop('masks')
            if not instances.bboxes.any():  # of models without boxes, such as SOLO
                instances.bboxes = mask2bbox(masks)
            instances.masks = PlacedMasks.at(masks.numpy(), self.shape, row.start, column.start)
        self.cut.append(_is_cut(instances.bboxes, self.shape, row, column))
        corner = instances.bboxes.new_tensor([column.start, row.start] * 2)
        instances.bboxes = instances.bboxes + corner
        self.found.append(instances)

    def write(self, sample: BaseDataElement) -> None:
        from mmdet.models.utils.misc import samplelist_boxtype2tensor

        samplelist_boxtype2tensor([sample])  # the ground truth, as a detector's preprocessor does
        tile = torch.cat([torch.full((len(f),), i) for i, f in enumerate(self.found)])
        instances = InstanceData.cat(self.found)
        sample.pred_instances = instances[keep(instances, tile, torch.cat(self.cut))]


def _is_cut(boxes: Tensor, shape: tuple[int, int], row: Span, column: Span) -> Tensor:
    """Return which boxes of a tile are cut by its border, except at borders of the image, (N,)."""
    height, width = row.stop - row.start, column.stop - column.start
    left, top, right, bottom = boxes.unbind(1)
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    if column.start > 0:
        cut |= left <= BORDER * width
    if row.start > 0:
        cut |= top <= BORDER * height
    if column.stop < shape[1]:
        cut |= right >= (1 - BORDER) * width
    if row.stop < shape[0]:
        cut |= bottom >= (1 - BORDER) * height
    return cut


def keep(instances: InstanceData, tile: Tensor, cut: Tensor) -> Tensor:
    """Return which instances remain after non-maximum suppression across tiles, bool, (N,).

    A box suppresses boxes of other tiles: boxes of the same class with an IoU above 0.5, and cut
    boxes if more than half of their area is inside the box. A cut box often has the wrong class, so
    a box that is not cut suppresses cut boxes of any class, unless its score is less than a tenth
    of theirs: detectors also return many boxes with very low scores. Boxes that are not cut come
    first, then boxes with higher scores. Boxes of the same tile never suppress each other, because
    the model has already applied NMS to them.

    Args:
        instances: ``bboxes``, (N, 4), ``scores`` and ``labels``, (N,).
        tile: Index of the tile of each instance, (N,).
        cut: Whether each box is cut by the border of its tile, (N,).
    """
    kept = torch.ones(len(instances), dtype=torch.bool)
    tiles = tile.unique()
    if len(tiles) < 2:
        return kept
    from mmdet.structures.bbox import bbox_overlaps

    boxes, labels, scores = instances.bboxes, instances.labels, instances.scores
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(cut[order].int(), stable=True)]
    rank = torch.argsort(order)
    # a box can only suppress boxes of tiles whose boxes are in the same area
    areas = [boxes[tile == each] for each in tiles]
    areas = torch.stack([torch.cat([b[:, :2].amin(0), b[:, 2:].amax(0)]) for b in areas])
    near = bbox_overlaps(areas, areas).fill_diagonal_(0) > 0
    pairs = []  # of boxes of which the first one suppresses the second one, if it remains
    for each, row in zip(tiles, near, strict=True):
        others = torch.isin(tile, tiles[row]).nonzero()[:, 0]
        of_tile = (tile == each).nonzero()[:, 0]
        for block in of_tile.split(max(PAIRS // max(len(others), 1), 1)):
            iou = bbox_overlaps(boxes[block], boxes[others])
            inside = bbox_overlaps(boxes[others], boxes[block], 'iof').T
            same_class = labels[block, None] == labels[others]
            surer = ~cut[block, None] & (scores[block, None] >= scores[others] / 10)
            part = cut[others] & (same_class | surer) & (inside > NMS_THRESHOLD)
            suppresses = (same_class & (iou > NMS_THRESHOLD)) | part
            first, second = (suppresses & (rank[block, None] < rank[others])).nonzero().unbind(1)
            pairs.append(torch.stack([block[first], others[second]], 1))
    found = torch.cat(pairs)
    for first, second in found[torch.argsort(rank[found[:, 0]])].tolist():
        if kept[first]:
            kept[second] = False
    return kept
