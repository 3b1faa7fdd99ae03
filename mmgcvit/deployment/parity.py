"""Differences between the predictions of an exported model and of the model in PyTorch.

N: number of detections, H, W: height and width of an image in pixels, m: mask size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
import torchvision
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor

from ..visualization.cam import SCORE_THR

SAME = 0.5  # IoU above which detections of one class are of the same object


@dataclass
class Parity:
    """Differences between two models, one number per pair of detections or per image.

    Only pairs with a score over 0.3 count, because soft NMS may swap the scores of other pairs.

    Attributes:
        boxes: Largest difference of a box's coordinates, in pixels of the image.
        scores: Difference of the scores. For classifiers, the largest difference of an image.
        masks: IoU of the masks.
        unpaired: Scores of the detections that only one of the two models makes.
        pixels: Segmentors: share of the pixels with the same class.
        classes: Classifiers: 1 if the class of the image is the same, or 0.
        metrics: Maps name → results in PyTorch and in ONNX Runtime.
        seconds: Seconds per image in PyTorch and in ONNX Runtime.
        skipped: Number of images that could not be loaded.
    """

    boxes: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)
    unpaired: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)
    classes: list[float] = field(default_factory=list)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    skipped: int = 0

    def add(self, expected: BaseDataElement, found: BaseDataElement) -> None:
        """Add the differences between two data samples of an image."""
        if 'pred_score' in expected:
            self.scores.append((expected.pred_score - found.pred_score).abs().max().item())
            self.classes.append(float(torch.equal(expected.pred_label, found.pred_label)))
            return
        if 'pred_sem_seg' in expected:
            same = expected.pred_sem_seg.data == found.pred_sem_seg.data
            self.pixels.append(same.float().mean().item())
            return
        first, second = expected.pred_instances, found.pred_instances
        left, right = _pairs(first, second)
        for instances, paired in ((first, left), (second, right)):
            alone = torch.ones(len(instances), dtype=torch.bool)
            alone[paired] = False
            self.unpaired += instances.scores[alone].tolist()
        clear = torch.maximum(first.scores[left], second.scores[right]) > SCORE_THR
        first, second = first[left[clear]], second[right[clear]]
        self.boxes += (first.bboxes - second.bboxes).abs().amax(1).tolist()
        self.scores += (first.scores - second.scores).abs().tolist()
        if 'masks' in first:
            common = (first.masks & second.masks).sum((1, 2))
            union = (first.masks | second.masks).sum((1, 2))
            self.masks += torch.where(union > 0, common / union.clamp(min=1), 1.0).tolist()

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        number, threads = len(self.seconds), torch.get_num_threads()
        yield f'{number} images, one per run, on the CPU; threads: {threads}'
        if self.skipped:
            total = number + self.skipped
            yield f'{self.skipped} of {total} images were skipped, because they could not be loaded'
        if self.boxes or self.unpaired:
            highest = f', with scores up to {max(self.unpaired):.3f}' if self.unpaired else ''
            yield (
                f'{len(self.boxes)} detections in both, with a score over {SCORE_THR}; '
                f'{len(self.unpaired)} in only one{highest}'
            )
        for name, values, worst in (
            ('difference of boxes (pixels)', self.boxes, max),
            ('difference of scores', self.scores, max),
            ('IoU of masks', self.masks, min),
            ('pixels with the same class', self.pixels, min),
            ('images with the same class', self.classes, min),
        ):
            if values:
                yield f'{name:30} median {median(values):.5f}  {worst.__name__} {worst(values):.5f}'
        yield f'{"":30} {"PyTorch":>12} {"ONNX Runtime":>12}'
        for name, (first, second) in self.metrics.items():
            yield f'{name:30} {first:12.4f} {second:12.4f}'
        first, second = (1e3 * median(times) for times in zip(*self.seconds, strict=True))
        yield f'{"median latency (ms)":30} {first:12.1f} {second:12.1f}'


def as_sample(
    outputs: Mapping[str, np.ndarray], expected: BaseDataElement, mask_thr: float
) -> BaseDataElement:
    """Return a copy of a data sample with the outputs of an exported model as its predictions.

    Args:
        outputs: Maps names of outputs → outputs.
        expected: Data sample with the predictions in PyTorch.
        mask_thr: Probability above which a pixel belongs to the mask.
    """
    sample = expected.clone()
    found = {name: torch.from_numpy(value) for name, value in outputs.items()}
    if 'label_map' in found:
        sample.pred_sem_seg = PixelData(data=found['label_map'][None].long())
        return sample
    if 'boxes' not in found:
        return sample.set_pred_score(found['scores']).set_pred_label(found['scores'].argmax())
    instances = InstanceData(bboxes=found['boxes'], scores=found['scores'], labels=found['labels'])
    if 'masks' in found:
        masks = found['masks']
        if masks.dtype != torch.bool:
            from .regions import paste

            masks = paste(masks, found['boxes'], torch.tensor(expected.ori_shape)) >= mask_thr
        instances.masks = masks
    sample.pred_instances = instances
    return sample


def agreement(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Return how similar the outputs of two models for an image are, from 0 to 1.

    Segmentors: the share of the pixels with the same class. Classifiers: 1 minus the largest
    difference of the scores. Detectors: the common share of the scores of all detections; pairs
    count by the share of their masks that differs.
    """
    if 'label_map' in expected:
        return float((expected['label_map'] == found['label_map']).mean())
    if 'boxes' not in expected:
        return 1 - float(np.abs(expected['scores'] - found['scores']).max())
    first, second = (
        InstanceData(
            **{name.replace('boxes', 'bboxes'): torch.from_numpy(x) for name, x in each.items()}
        )
        for each in (expected, found)
    )
    left, right = _pairs(first, second)
    scores = torch.stack((first.scores[left], second.scores[right]))
    common = scores.amin(0)
    union = first.scores.sum() + second.scores.sum() - common.sum()
    if 'masks' in first:
        differences = (first.masks[left].float() - second.masks[right].float()).abs()
        common = common * (1 - differences.mean((1, 2)))
    return float(common.sum() / union) if union > 0 else 1.0


def _pairs(first: InstanceData, second: InstanceData) -> tuple[Tensor, Tensor]:
    """Return the indices of paired detections, which have the same class and overlap."""
    overlap = torchvision.ops.box_iou(first.bboxes, second.bboxes)
    overlap = overlap * (first.labels[:, None] == second.labels)
    left, right = [], []
    if len(second):
        for index in range(len(first)):
            best = int(overlap[index].argmax())
            if overlap[index, best] > SAME:
                left.append(index)
                right.append(best)
                overlap[:, best] = 0
    return torch.tensor(left, dtype=torch.long), torch.tensor(right, dtype=torch.long)
