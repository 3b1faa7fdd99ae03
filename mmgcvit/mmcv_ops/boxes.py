"""Overlaps of boxes and non-maximum suppression, under the names and arguments of ``mmcv._ext``.

Boxes are (x1, y1, x2, y2). With ``offset`` 1 they include their last pixel, so that a width is
x2 - x1 + 1.

Letters: N, M boxes.
"""

import torch
from torch import Tensor

from .precision import at_least_float32

IOU, IOF = 0, 1  # mmcv's modes: intersection over union, and over the first box's area


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write the overlaps of boxes (N, 4) and (M, 4) into ``ious``.

    That is (N, M), or with ``aligned`` (N), where N = M. Areas count as ``offset`` at least, as in
    mmcv's CUDA operator: with ``offset`` 0, two boxes without area give NaN.
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
    """Return the intersections of boxes (..., 4) and (..., 4), and the areas to divide them by.

    Dimensions before the last one broadcast.
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
    """Return the indices of the boxes (N, 4) to keep, by descending score.

    A box goes if its overlap with a kept one exceeds the threshold. Of equal scores (N) the first
    box comes first.
    """
    boxes, scores = at_least_float32(boxes, scores)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in single precision: 0.7 is a little less there
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
    """Lower the scores of boxes that overlap with better ones, instead of removing these boxes.

    Args:
        boxes: (N, 4).
        scores: (N).
        dets: (N, 5), on the CPU. The first rows become the boxes that are left with their new
            scores, best first.
        iou_threshold: From which overlap on a score is lowered, if the method is not gaussian.
        sigma: Of the gaussian method.
        min_score: Boxes whose score falls below are dropped.
        method: 0 naive (the score becomes 0), 1 linear, 2 gaussian.
        offset: 0 or 1.

    Returns:
        Indices of the boxes that are left, as many as there are rows in ``dets``.
    """
    boxes, scores = at_least_float32(boxes, scores)
    left = torch.arange(len(boxes), device=boxes.device)
    order = []
    # one turn for every box that is left: each score depends on the choices before
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
        left = left[~(scores[left] < min_score)]  # mmcv keeps NaN
    return torch.stack(order) if order else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return groups of boxes (N, 5 with the score): a kept one first, then those it suppresses."""
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
