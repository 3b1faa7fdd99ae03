"""Boxes in exported graphs, where their number is not known when the graph is recorded.

mmdet's functions branch on the number of boxes, and a graph would record only one branch. The
functions here read the same settings and have the same results, including the one for no boxes.

N: number of boxes. Boxes are x1, y1, x2, y2 in pixels.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from ..errors import UserError, did_you_mean

MAX_RATIO = abs(math.log(16 / 1000))  # default of mmdet's delta2bbox, which no config changes
# settings of mmcv's batched_nms, and those of each kind
KEYS = ('type', 'iou_threshold', 'class_agnostic', 'split_thr')
NMS = {'nms': (), 'soft_nms': ('sigma', 'min_score', 'method')}


def require_coder(coder: object, where: str) -> None:
    """Raise a UserError unless :func:`decode` supports a box coder."""
    if type(coder) is not DeltaXYWHBBoxCoder:
        raise UserError(
            f'{where}.bbox_coder is {type(coder).__name__}, which cannot be exported: use '
            'DeltaXYWHBBoxCoder'
        )


def require_nms(settings: Mapping[str, Any] | None, number: int, where: str) -> None:
    """Raise a UserError unless :func:`suppress` supports the settings of NMS."""
    if not settings:
        raise UserError(
            f'{where}.nms is not set, and models without NMS cannot be exported: set it, for '
            "example to dict(type='nms', iou_threshold=0.5)"
        )
    kind = settings.get('type', 'nms')
    if kind not in NMS:
        raise UserError(
            f"{where}.nms.type is '{kind}', which cannot be exported: use {' or '.join(NMS)}, for "
            f'example with --cfg-options model.{where}.nms.type=nms'
        )
    for key in settings:
        if key not in (*KEYS, *NMS[kind]):
            raise UserError(
                f'{where}.nms.{key} of {kind} cannot be exported'
                f'{did_you_mean(key, (*KEYS, *NMS[kind]))}: remove it, or use '
                f'{", ".join((*KEYS, *NMS[kind]))}'
            )
    if kind == 'soft_nms' and number < 1:
        raise UserError(
            f'{where}.max_per_img is {number}, and soft_nms cannot be exported without a limit: '
            f'set it, for example with --cfg-options model.{where}.max_per_img=100'
        )


def decode(coder: DeltaXYWHBBoxCoder, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Return the boxes that a network predicts relative to priors.

    Args:
        coder: The head's box coder.
        priors: Anchors or regions, (N, 4).
        deltas: Predictions of the network, (N, 4).
        size: Height and width of the image, (2,), at which boxes are clipped.
    """
    shift, zoom = (deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)).split(
        2, dim=1
    )
    corner1, corner2 = priors.split(2, dim=1)
    extent = corner2 - corner1
    shift = extent * shift
    if coder.add_ctr_clamp:
        shift = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp)
        zoom = zoom.clamp(max=MAX_RATIO)
    else:
        zoom = zoom.clamp(-MAX_RATIO, MAX_RATIO)
    center = (corner1 + corner2) * 0.5 + shift
    half = extent * zoom.exp() * 0.5
    boxes = torch.cat((center - half, center + half), 1)
    if coder.clip_border:
        boxes = torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2).to(boxes))
    return boxes


def is_larger(boxes: Tensor, limit: float) -> Tensor:
    """Return which boxes are wider and higher than a limit, (N,). A negative limit selects all."""
    extent = boxes[:, 2:] - boxes[:, :2]
    return (extent > limit).all(1) if limit >= 0 else torch.ones_like(boxes[:, 0]) > 0


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, settings: Mapping[str, Any], number: int
) -> tuple[Tensor, Tensor]:
    """Apply NMS within each group.

    Args:
        boxes: Boxes, (N, 4).
        scores: Scores, (N,).
        groups: Class or feature level of each box, (N,).
        settings: ``nms`` of a test config, see :func:`require_nms`.
        number: Largest number of boxes to keep, or -1.

    Returns:
        Indices of the boxes to keep, in descending order of score, and their scores, which
        ``soft_nms`` lowers.
    """
    if not settings.get('class_agnostic', False):
        # shifted so that boxes of different groups do not overlap; zero: if there are no boxes
        farthest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()
        boxes = boxes + (groups.to(boxes) * (farthest + 1))[:, None]
    if settings.get('type', 'nms') == 'soft_nms':
        return _soft_nms(boxes, scores, settings, number)
    kept = torchvision.ops.nms(boxes, scores, settings['iou_threshold'])
    kept = kept[:number] if number > 0 else kept
    return kept, scores[kept]


def _soft_nms(
    boxes: Tensor, scores: Tensor, settings: Mapping[str, Any], number: int
) -> tuple[Tensor, Tensor]:
    # Scores only decrease, so that each selected box has a lower score than the one before, and
    # `number` selections are enough. A graph contains all of them, whatever the number of boxes.
    method, threshold = settings.get('method', 'linear'), settings['iou_threshold']
    boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))  # at least one, whose score is 0
    scores = torch.cat((scores, scores.new_zeros(1)))
    index = torch.arange(scores.shape[0], device=scores.device)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept, values = [], []
    for _ in range(number):
        best = scores.argmax()
        kept.append(best)
        values.append(scores[best])
        corner1 = torch.maximum(boxes[:, :2], boxes[best, :2])
        corner2 = torch.minimum(boxes[:, 2:], boxes[best, 2:])
        common = (corner2 - corner1).clamp(min=0).prod(1)
        overlap = common / (area + area[best] - common).clamp(min=1e-6)
        if method == 'gaussian':
            factor = (-(overlap**2) / settings.get('sigma', 0.5)).exp()
        else:
            lowered = 1 - overlap if method == 'linear' else torch.zeros_like(overlap)
            factor = torch.where(overlap >= threshold, lowered, torch.ones_like(overlap))
        scores = torch.where(index == best, torch.zeros_like(scores), scores * factor)
    values = torch.stack(values)
    (valid,) = (values >= max(settings.get('min_score', 1e-3), 1e-6)).nonzero(as_tuple=True)
    return torch.stack(kept)[valid], values[valid]
