"""Grad-CAM: which regions of a feature map raise the score of a class, a box or a segment.

For a class of a classifier, Selvaraju et al., `Grad-CAM <https://arxiv.org/abs/1610.02391>`_,
equations 1 and 2: the channels of a feature map are weighted with the mean gradients of the score
and added, and negative sums are set to 0. The score of a box or a segment depends on a part of the
image, and mean gradients do not show where it is. Therefore these gradients are not averaged, as in
`HiResCAM <https://arxiv.org/abs/2011.08891>`_.

The feature maps are outputs of the backbone. The gradients are those of the neck and the heads, so
the backbone does not run again.

H, W: height and width of a feature map or of the image, C: channels.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from ..errors import UserError, did_you_mean
from ..models import GCViT
from ..task import CLASSIFICATION, DETECTION, Task

SCORE_THR = 0.3  # minimum score of detections; the default of mmdet's DetInferencer
SHOWN = 12  # maximum number of allowed values in an error message


@dataclass(frozen=True)
class Target:
    """A predicted class, box or segment.

    Attributes:
        name: Name of the class.
        index: Index of the class.
        title: Description for pictures.
        number: Number of a detection in the order of the scores, or None.
        score: Predicted probability; None for a segment.
        box: Left, top, right and bottom edge of a detection in pixels of the image.
        mask: Mask of a detection or segment, (H, W).
    """

    name: str
    index: int
    title: str
    number: int | None = None
    score: float | None = None
    box: Tensor | None = None
    mask: np.ndarray | None = None


def require_score(score_thr: float) -> None:
    """Raise a UserError if the minimum score of detections is not a number from 0 to 1."""
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr {score_thr} is not allowed: use a number from 0 to 1')


def averages_gradients(task: Task) -> bool:
    """Whether the gradients are averaged, as in Grad-CAM, or not, as in HiResCAM."""
    return task is CLASSIFICATION


def find_targets(
    task: Task, classes: Sequence[str], prediction: BaseDataElement, score_thr: float = SCORE_THR
) -> list[Target]:
    """Return what was predicted, the best first.

    Detectors: detections with a score above ``score_thr``, by score. Segmentors: the segments of
    the predicted classes, by size. Classifiers: all classes, by probability.

    Args:
        task: Task of the model.
        classes: Names of the classes.
        prediction: Data sample with the model's prediction.
        score_thr: Minimum score of a detection.
    """
    if task is CLASSIFICATION:
        scores = prediction.pred_score.cpu()
        order = scores.argsort(descending=True, stable=True).tolist()
        return [
            Target(classes[i], i, f'{classes[i]} {scores[i]:.2f}', score=float(scores[i]))
            for i in order
        ]
    if task is DETECTION:
        return _detections(classes, prediction.pred_instances.cpu(), score_thr)
    labels = prediction.pred_sem_seg.data[0].cpu().long().numpy()
    pixels = np.bincount(labels.ravel(), minlength=len(classes))
    # a head with one class and a threshold also predicts the label 1
    names = [*classes, *(f'label {i}' for i in range(len(classes), len(pixels)))]
    return [
        Target(names[i], i, f'{names[i]} {pixels[i] / labels.size:.0%} of pixels', mask=labels == i)
        for i in np.argsort(-pixels, kind='stable').tolist()
        if pixels[i]
    ]


def choose_target(
    task: Task, classes: Sequence[str], targets: Sequence[Target], chosen: str | None = None
) -> Target:
    """Choose one of the targets of :func:`find_targets`.

    Args:
        task: Task of the model.
        classes: Names of the classes.
        targets: What was predicted.
        chosen: Name of a class, which means the best target of this class. A number means a
            detection, counted from 0 as in ``targets``, or the index of a class. None means the
            best target.

    Raises:
        UserError: If the model does not have the class, or it was not predicted.
    """
    if not targets:
        raise UserError(
            'no detection has a score above --score-thr: pass a lower --score-thr, or another image'
        )
    if chosen is None:
        return targets[0]
    is_detector = task is DETECTION
    limit = len(targets) if is_detector else len(classes)
    if chosen in classes:
        found = [target for target in targets if target.name == chosen]
    elif chosen.isdecimal() and int(chosen) < limit:
        number = int(chosen)
        found = [t for t in targets if number == (t.number if is_detector else t.index)]
    else:
        numbers = 'the number of a detection' if is_detector else 'its index'
        raise UserError(
            f'--cam {chosen} is not a class of this model{did_you_mean(chosen, classes)}: pass the '
            f'name of a class, or {numbers} from 0 to {limit - 1}; the classes are '
            f'{some_of(classes)}'
        )
    if not found:
        predicted = some_of([target.title for target in targets])
        lower = ', or pass a lower --score-thr' if is_detector else ''
        raise UserError(f'--cam {chosen} was not predicted: choose from {predicted}{lower}')
    return found[0]


def grad_cam(
    model: nn.Module,
    task: Task,
    backbone: GCViT,
    outputs: Sequence[Tensor],
    batch: Mapping[str, Any],
    target: Target,
) -> dict[int, Tensor]:
    """Return the Grad-CAM of every output of the backbone on which the target's score depends.

    The score is the logit of a class, the mean logit of a segment's pixels, or the predicted
    probability of a detection, before non-maximum suppression. The other outputs of the backbone
    are held constant.

    Args:
        model: A detector, segmentor or classifier.
        task: Its task.
        backbone: The backbone of the model.
        outputs: Outputs of the backbone for ``batch``.
        batch: Batch of one image, as for ``model.test_step``.
        target: What to explain, from the prediction for ``batch``.

    Returns:
        Maps (H, W) by the index of the stage.

    Raises:
        UserError: If the model computes its scores without gradients.
    """
    leaves = [each.detach().clone().requires_grad_() for each in outputs]
    with torch.enable_grad(), _fixed_outputs(backbone, leaves):
        score = _score(model, task, batch, target)
    if not score.requires_grad:
        raise UserError(
            f'the {type(model).__name__} computes its scores without gradients, so it has no '
            'Grad-CAM: pass --no-cam'
        )
    gradients = torch.autograd.grad(score, leaves, allow_unused=True)
    cams = {}
    for stage, leaf, weights in zip(backbone.out_indices, leaves, gradients, strict=True):
        if weights is not None:
            if averages_gradients(task):
                weights = weights.mean((2, 3), keepdim=True)
            cams[stage] = (weights * leaf.detach()).sum(1).clamp(min=0)[0]
    return cams


def some_of(names: Sequence[str]) -> str:
    """Return the first names. Semicolons separate them, because names may contain commas."""
    more = f'; … ({len(names)} in all)' if len(names) > SHOWN else ''
    return '; '.join(names[:SHOWN]) + more


def _detections(classes: Sequence[str], instances: InstanceData, score_thr: float) -> list[Target]:
    instances = instances[instances.scores > score_thr]
    instances = instances[instances.scores.argsort(descending=True, stable=True)]
    masks = instances.get('masks')
    return [
        Target(
            classes[label],
            label,
            f'detection {number}: {classes[label]} {score:.2f}',
            number,
            score,
            instances.bboxes[number],
            None if masks is None else np.asarray(masks[number], bool),
        )
        for number, (label, score) in enumerate(
            zip(instances.labels.tolist(), instances.scores.tolist(), strict=True)
        )
    ]


@contextmanager
def _fixed_outputs(backbone: nn.Module, outputs: Sequence[Tensor]) -> Iterator[None]:
    """Let a backbone return these outputs."""
    # copies, since a neck may change its inputs in place
    with patch.object(backbone, 'forward', lambda images: tuple(each.clone() for each in outputs)):
        yield


def _score(model: nn.Module, task: Task, batch: Mapping[str, Any], target: Target) -> Tensor:
    """Return the score of a target with its gradients, a scalar."""
    if task is CLASSIFICATION:
        return model(**model.data_preprocessor(batch), mode='tensor')[0, target.index]
    if task is DETECTION:
        return _detection_score(model, batch, target)
    (sample,) = model.test_step(batch)
    logits = sample.seg_logits.data
    if len(logits) == 1:  # one probability for two classes
        logits = torch.cat([1 - logits, logits])
    return logits[target.index][torch.from_numpy(target.mask).to(logits.device)].mean()


def _detection_score(model: nn.Module, batch: Mapping[str, Any], target: Target) -> Tensor:
    assert target.score is not None  # of a detection
    with _all_candidates(model, target.score):
        (sample,) = model.test_step(batch)
    found = sample.pred_instances
    found = found[found.labels == target.index]
    distances = (found.bboxes.detach().cpu() - target.box).abs().sum(1)
    # suppression changes neither boxes nor labels
    if not len(distances) or distances.min() > 1:
        raise UserError(
            f'the {type(model).__name__} does not find this detection again without non-maximum '
            'suppression, so it has no Grad-CAM: pass --no-cam'
        )
    return found.scores[distances.argmin()]


@contextmanager
def _all_candidates(model: nn.Module, score: float) -> Iterator[None]:
    """Let a detector return its candidates of at least a score, with their gradients.

    Suppression is skipped, because soft NMS lowers scores without gradients. Masks, which would be
    computed for all candidates, are skipped too. mmdet's one-stage heads detach their scores with
    ``select_single_mlvl``, which is replaced.
    """
    head: Any = getattr(model, 'roi_head', None) or getattr(model, 'bbox_head', None)
    with ExitStack() as changes:
        settings = getattr(head, 'test_cfg', None)
        if settings and 'nms' in settings:
            # suppression and products with centerness only lower scores
            without = dict(nms=None, score_thr=score * (1 - 1e-4), max_per_img=10**6)
            changes.enter_context(patch.object(head, 'test_cfg', settings.copy()))
            head.test_cfg.update(without)
        if getattr(head, 'with_mask', False):
            changes.callback(setattr, head, 'mask_head', head.mask_head)
            head.mask_head = None
        for module in {sys.modules[cls.__module__] for cls in type(head).__mro__}:
            if select := getattr(module, 'select_single_mlvl', None):
                attached = partial(_select_with_gradients, select)
                changes.enter_context(patch.object(module, 'select_single_mlvl', attached))
        yield


def _select_with_gradients(
    select: Callable[..., list[Tensor]], maps: Sequence[Tensor], image: int, detach: bool = True
) -> list[Tensor]:
    return select(maps, image, detach=False)
