"""Box overlaps and non-maximum suppression, with the names and arguments of ``mmcv._ext``.

Boxes are (x1, y1, x2, y2). If ``offset`` is 1, boxes include their last pixel: the width is
x2 - x1 + 1.

N, M: numbers of boxes.
"""

import torch
from torch import Tensor

from .precision import at_least_float32

IOU, IOF = 0, 1  # mmcv's modes: intersection over union, intersection over the first box's area


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the overlaps of boxes (N, 4) and (M, 4) to ``ious``.

    ``ious`` is (N, M), or (N,) if ``aligned``, where N = M. As in mmcv's CUDA operator, the minimum
    of areas is ``offset``. If ``offset`` is 0, two boxes without area give NaN.
    """
    first, second = at_least_float32(bboxes1, bboxes2)
    if not aligned:
        first = first[:, None]
    intersection, area = _overlaps(first, second, mode, offset)
    ious.copy_(intersection / area.clamp(min=offset))


def _iou(first: Tensor, second: Tensor, offset: int) -> Tensor:
    intersection, area = _overlaps(first, second, IOU, offset)
    return intersection / area


def _overlaps(first: Tensor, second: Tensor, mode: int, offset: int) -> tuple[Tensor, Tensor]:
    """Return the intersection areas of two sets of boxes (..., 4), and the denominators.

    All dimensions except the last one are broadcast.
    """
    corner1 = torch.maximum(first[..., :2], second[..., :2])
    corner2 = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (corner2 - corner1 + offset).clamp(min=0).prod(-1)
    area = _area(first, offset)
    if mode == IOU:
        area = area + _area(second, offset) - intersection
    return intersection, area


def _area(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (N, 4) to keep, in descending order of their scores (N,).

    A box is removed if its overlap with a kept box exceeds the threshold. Boxes with equal scores
    keep their order.
    """
    boxes, scores = at_least_float32(boxes, scores)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in single precision, in which 0.7 is slightly smaller than in double precision
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap with better boxes, instead of removing them.

    Args:
        boxes: Boxes, (N, 4).
        scores: Scores of the boxes, (N,).
        dets: Output, (N, 5), on the CPU. The remaining boxes with their new scores are written to
            the first rows, in descending order of score.
        iou_threshold: Minimum overlap at which a score is lowered. The gaussian method ignores it.
        sigma: Parameter of the gaussian method.
        min_score: Boxes with a lower score are removed.
        method: 0 for naive (the score becomes 0), 1 for linear, 2 for gaussian.
        offset: 0 or 1, see the module's docstring.

    Returns:
        Indices of the remaining boxes, in the order of the rows in ``dets``.
    """
    boxes, scores = at_least_float32(boxes, scores)
    left = torch.arange(len(boxes), device=boxes.device)
    order: list[Tensor] = []
    # one iteration per remaining box, since each score depends on the previous selections
    while len(left):
        best = scores[left].argmax()
        index = left[best]
        dets[len(order), :4] = boxes[index]
        dets[len(order), 4] = scores[index]
        order.append(index)
        left = torch.cat((left[:best], left[best + 1 :]))
        overlap = _iou(boxes[index], boxes[left], offset)
        if method == 2:
            factor = torch.exp(-(overlap * overlap) / sigma)
        else:
            lowered = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            factor = torch.where(overlap >= iou_threshold, lowered, torch.ones_like(overlap))
        scores = scores.index_copy(0, left, scores[left] * factor)
        left = left[~(scores[left] < min_score)]  # not `>=`, since mmcv keeps NaN scores
    return torch.stack(order) if order else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with scores (N, 5) by the kept box that suppresses them."""
    (dets,) = at_least_float32(dets)
    boxes, scores = dets[:, :4], dets[:, 4]
    left = scores.argsort(descending=True, stable=True)
    groups = []
    while len(left):
        best, others = left[0], left[1:]
        suppressed = _iou(boxes[best], boxes[others], 0) >= iou_threshold
        groups.append([best.item(), *others[suppressed].tolist()])
        left = others[~suppressed]
    return groups
