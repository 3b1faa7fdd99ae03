"""Instance masks: which ones mmdet and pycocotools can use, and which settings need them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ...task import inner_model
from ..options import walk
from .split import find_evaluators

SPLITS = ('train', 'val', 'test')


# what is wrong with a mask, and the remedy
MISSING = 'have no segmentation'
FLAT = (
    'have a segmentation that is one flat list of numbers: put each polygon into a list of its '
    'own: [[x1, y1, x2, y2, x3, y3]]'
)
NOT_NUMBERS = (
    'have polygons with coordinates that are not finite numbers: correct or remove the polygons'
)
OTHER_KIND = (
    'have a segmentation that is neither a list of polygons nor RLE with counts and size: export '
    'the masks again'
)
RLE_SIZE = (
    'have RLE masks of another size than their images: write size as [height, width] of the image, '
    'and encode the masks at this size'
)
RLE_SUM = (
    'have RLE masks whose counts do not add up to the number of pixels: encode the masks again'
)
SHORT = (
    'have polygons that are not an even number of at least 6 coordinates: draw polygons of at '
    'least three points, or remove the annotations'
)
SHORT_IGNORED = SHORT.replace('have polygons', 'are ignored, because they have only polygons')
RLE_IGNORED = (
    'are ignored, because LoadAnnotations(poly2mask=False) does not support RLE: remove '
    'poly2mask=False from the pipeline, or convert the masks to polygons'
)
IGNORED = (SHORT_IGNORED, RLE_IGNORED)  # training does not fail because of these


def mask_fault(mask: Any, size: Sequence[int], evaluated: bool, polygons_only: bool) -> str | None:
    """Return why a mask cannot be used, or None if it can.

    pycocotools cannot do this: with some of these masks, it takes all memory or ends the process.

    Args:
        mask: The field ``segmentation`` of an annotation.
        size: Height and width of the image.
        evaluated: Whether mask AP is computed from it; it accepts fewer polygons than mmdet.
        polygons_only: Whether the training ignores RLE.
    """
    if not mask:
        return MISSING
    if isinstance(mask, list):
        if not all(isinstance(polygon, list) for polygon in mask):
            return NOT_NUMBERS if any(isinstance(each, list) for each in mask) else FLAT
        if not all(_are_numbers(polygon) for polygon in mask):
            return NOT_NUMBERS
        if evaluated and len(mask[0]) <= 4:  # taken for a box
            return SHORT
        usable = any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)
        return None if usable else SHORT_IGNORED
    if not isinstance(mask, dict) or not isinstance(mask.get('counts'), list | str):
        return OTHER_KIND
    if mask.get('size') != list(size):
        return RLE_SIZE
    counts = mask['counts']
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not all(isinstance(count, int) and count >= 0 for count in counts) or (
        sum(counts) != math.prod(size)
    ):
        return RLE_SUM
    return RLE_IGNORED if polygons_only else None


def _decompressed(text: str) -> list[int]:
    """Return the counts of COCO's compressed RLE.

    A number is in characters of 5 bits, the lowest ones first, and from the fourth number on the
    difference to the last but one. pycocotools does not check them.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _are_numbers(values: list) -> bool:
    try:
        return all(map(math.isfinite, values))
    except TypeError:
        return False


def predicts_masks(model: Mapping[str, Any]) -> bool | None:
    """Return whether a detector predicts masks, or None for a model of unknown structure."""
    roi_head = model.get('roi_head')
    if any(model.get(head) for head in ('mask_head', 'panoptic_head', 'panoptic_fusion_head')):
        return True
    return None if roi_head is None else bool(roi_head.get('mask_head'))


def box_options(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Return the settings with which a detector is trained or evaluated on boxes only.

    Args:
        cfg: Config of a detector.
        splits: Splits without masks. If training has none, no split needs any.

    Returns:
        Arguments for ``--cfg-options``, or none if the model needs masks.
    """
    options: dict[str, str] = {}
    if 'train' in splits:
        model = inner_model(cfg)
        if predicts_masks(model):
            if model is not cfg.model or not (model.get('roi_head') or {}).get('mask_head'):
                return []
            options = {
                f'model.roi_head.{key}': 'None'
                for key in ('mask_head', 'mask_roi_extractor')
                if model.roi_head.get(key)
            }
        splits = SPLITS
    for split in splits:
        options |= {
            f'{split}_dataloader.{name}': 'False'
            for name, value in walk(cfg.get(f'{split}_dataloader') or {})
            if name.rpartition('.')[2] in ('with_mask', 'by_mask') and value
        }
        options |= {
            f'{place}.metric': 'bbox'
            for place, evaluator in find_evaluators(cfg, split)
            if 'segm' in evaluator.get('metric', ())
        }
    if 'val' in splits:
        options |= {name: value.replace('segm', 'bbox') for name, value in monitored(cfg, 'segm_')}
    return [f'{name}={value}' for name, value in options.items()]


def monitored(cfg: Config, metric: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of hooks and schedules that read a metric of the validation."""
    for key in ('default_hooks', 'custom_hooks', 'param_scheduler'):
        for name, value in walk(cfg.get(key) or {}, key):
            is_monitor = {'save_best', 'monitor'} & set(name.split('.')[-2:])
            if is_monitor and isinstance(value, str) and metric in value:
                yield name, value
