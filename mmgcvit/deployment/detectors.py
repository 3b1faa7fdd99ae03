"""Detectors as graphs: from an image of any size to boxes, scores, labels and masks.

The graphs call the trained layers of mmdet's model. What mmdet does between and after them is
implemented here in operations that can be recorded. Parts of a detector that override this behavior
raise an error, even if they are subclasses of supported parts.

N: number of detections or anchors, P: number of proposals, K: number of classes, m: mask size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..errors import UserError
from .boxes import decode, is_larger, require_coder, require_nms, suppress
from .image import ImageInput, Sizes
from .regions import extract, one_more, paste

# names of the outputs, and of their axes of any length
DETECTIONS = {name: {0: 'detections'} for name in ('boxes', 'scores', 'labels')}


def detector_graph(model: nn.Module, paste_masks: bool) -> Callable[[ImageInput], nn.Module]:
    """Return the function that builds the graph of a detector for an input.

    Args:
        model: Detector of mmdet.
        paste_masks: Whether masks have the size of the image.

    Raises:
        UserError: If a part of the detector cannot be exported.
    """
    if _same(model, TwoStageDetector, 'predict'):
        _require_two_stage(model)
        return partial(TwoStage, model, paste_masks=paste_masks)
    if _same(model, SingleStageDetector, 'predict'):
        _require_anchor_head(model.bbox_head, 'bbox_head')
        return partial(SingleStage, model)
    raise _refuse('model', model, 'RetinaNet, ATSS, Faster, Mask or Cascade (Mask) R-CNN')


def _refuse(where: str, part: object, allowed: str) -> UserError:
    return UserError(
        f'{where} is {type(part).__name__}, which cannot be exported: use {allowed}, or export '
        'only the backbone (docs/graph_modes.md)'
    )


def _same(part: object, base: type, *methods: str) -> bool:
    """Whether a part is of a class and has methods that its subclasses may not replace."""
    return isinstance(part, base) and all(
        getattr(type(part), name) is getattr(base, name) for name in methods
    )


def _require_anchor_head(head: nn.Module, where: str) -> None:
    predict = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    base = RPNHead if where == 'rpn_head' else BaseDenseHead
    if not (isinstance(head, AnchorHead) and _same(head, base, *predict)):
        raise _refuse(where, head, 'RetinaHead or ATSSHead' if base is BaseDenseHead else 'RPNHead')
    if type(head.prior_generator) is not AnchorGenerator:
        raise _refuse(f'{where}.anchor_generator', head.prior_generator, 'AnchorGenerator')
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        raise _refuse(f'{where}.loss_cls', head.loss_cls, 'FocalLoss or CrossEntropyLoss')
    require_coder(head.bbox_coder, where)
    cfg = head.test_cfg
    where = 'test_cfg.rpn' if where == 'rpn_head' else 'test_cfg'
    require_nms(cfg.get('nms'), cfg.max_per_img, where)


def _require_two_stage(model: TwoStageDetector) -> None:
    _require_anchor_head(getattr(model, 'rpn_head', None), 'rpn_head')
    roi_head = model.roi_head
    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead):
        raise _refuse('roi_head', roi_head, 'StandardRoIHead or CascadeRoIHead')
    if roi_head.with_shared_head:
        raise _refuse('roi_head.shared_head', roi_head.shared_head, 'no shared_head')
    heads = dict(bbox=_stages(roi_head.bbox_head))
    extractors = dict(bbox=_stages(roi_head.bbox_roi_extractor))
    if roi_head.with_mask:
        heads['mask'] = _stages(roi_head.mask_head)
        extractors['mask'] = _stages(roi_head.mask_roi_extractor)
    for name, parts in extractors.items():
        for part in parts:
            where = f'roi_head.{name}_roi_extractor'
            if not _same(part, SingleRoIExtractor, 'forward', 'map_roi_levels'):
                raise _refuse(where, part, 'SingleRoIExtractor')
            layer = part.roi_layers[0]
            if type(layer) is not RoIAlign or layer.pool_mode != 'avg':
                raise _refuse(f'{where}.roi_layer', layer, "RoIAlign with pool_mode='avg'")
    for head in heads['bbox']:
        where = 'roi_head.bbox_head'
        if not (
            _same(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class')
            and head.with_cls
            and head.with_reg
        ):
            raise _refuse(where, head, 'BBoxHead, Shared2FCBBoxHead or ConvFCBBoxHead')
        if head.custom_cls_channels:
            raise _refuse(f'{where}.loss_cls', head.loss_cls, 'CrossEntropyLoss')
        require_coder(head.bbox_coder, where)
    for head in heads.get('mask', ()):
        if not _same(head, FCNMaskHead, 'forward', 'predict_by_feat', '_predict_by_feat_single'):
            raise _refuse('roi_head.mask_head', head, 'FCNMaskHead')
    cfg = roi_head.test_cfg
    require_nms(cfg.get('nms'), cfg.max_per_img, 'test_cfg.rcnn')


def _stages(part: nn.Module) -> Sequence[nn.Module]:
    """Return the stages of a part of a cascade, or the only one."""
    return part if isinstance(part, nn.ModuleList) else [part]


def _levels(
    head: AnchorHead, features: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield scores, deltas, anchors and score factors of each feature level.

    Yields:
        Scores, (N, K); deltas, (N, 4); anchors, (N, 4); a factor of the scores, (N,), or None.
    """
    scores, deltas, *factors = head(features)
    sizes = [level.shape[-2:] for level in scores]
    priors = head.prior_generator.grid_priors(sizes, device=scores[0].device)
    for index, anchors in enumerate(priors):
        logits = _rows(scores[index], head.cls_out_channels)
        values = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(1)[:, :-1]
        factor = _rows(factors[0][index], 1).sigmoid()[:, 0] if factors else None
        yield values, _rows(deltas[index], 4), anchors, factor


def _rows(level: Tensor, columns: int) -> Tensor:
    """Reorder a map to one row per anchor: (1, anchors·columns, H, W) → (N, columns)."""
    return level[0].permute(1, 2, 0).reshape(-1, columns)


def _best(scores: Tensor, cfg: ConfigDict) -> tuple[Tensor, Tensor]:
    """Return the highest scores of a feature level and their indices, in descending order."""
    scores, order = scores.sort(descending=True)
    number = cfg.get('nms_pre', -1)
    return (scores[:number], order[:number]) if number > 0 else (scores, order)


def _merge(
    levels: Sequence[tuple[Tensor, Tensor, Tensor]], cfg: ConfigDict
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply NMS to the boxes, scores and groups of all feature levels."""
    boxes, scores, groups = (torch.cat(parts) for parts in zip(*levels, strict=True))
    (large,) = is_larger(boxes, cfg.get('min_bbox_size', -1)).nonzero(as_tuple=True)
    boxes, scores, groups = boxes[large], scores[large], groups[large]
    kept, scores = suppress(boxes, scores, groups, cfg['nms'], cfg['max_per_img'])
    return boxes[kept], scores, groups[kept]


class SingleStage(nn.Module):
    """Detector with one dense head: RetinaNet, or ATSS.

    Args:
        model: Detector of mmdet.
        image: Input of the graph.
    """

    def __init__(self, model: SingleStageDetector, image: ImageInput) -> None:
        super().__init__()
        self.image, self.model = image, model
        self.outputs = dict(DETECTIONS)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in an image (H, W, 3), uint8.

        Returns:
            Boxes in pixels of the image, (N, 4); scores, (N,); labels, (N,), int64. In descending
            order of score.
        """
        x, sizes = self.image(image)
        head = self.model.bbox_head
        cfg = head.test_cfg
        found = []
        for scores, deltas, anchors, factor in _levels(head, self.model.extract_feat(x)):
            index, label = (scores > cfg.get('score_thr', 0)).nonzero().unbind(1)
            values, order = _best(scores[index, label], cfg)
            index, label = index[order], label[order]
            if factor is not None:
                values = values * factor[index]
            boxes = decode(head.bbox_coder, anchors[index], deltas[index], sizes.resized)
            found.append((boxes / sizes.scale, values, label))
        return _merge(found, cfg)


class TwoStage(nn.Module):
    """Detector with proposals: Faster, Mask and Cascade (Mask) R-CNN.

    Args:
        model: Detector of mmdet.
        image: Input of the graph.
        paste_masks: Whether masks have the size of the image.
    """

    def __init__(self, model: TwoStageDetector, image: ImageInput, paste_masks: bool) -> None:
        super().__init__()
        self.image, self.model, self.paste_masks = image, model, paste_masks
        self.with_mask = model.roi_head.with_mask
        self.outputs = dict(DETECTIONS)
        if self.with_mask:
            self.outputs['masks'] = {
                0: 'detections',
                **({1: 'height', 2: 'width'} if paste_masks else {}),
            }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in an image (H, W, 3), uint8.

        Returns:
            Boxes in pixels of the image, (N, 4); scores, (N,); labels, (N,), int64; with a mask
            head also the masks: probabilities inside the boxes, (N, m, m), or, if they are pasted,
            boolean masks of the image, (N, H, W).
        """
        x, sizes = self.image(image)
        features = self.model.extract_feat(x)
        proposals = self._propose(features, sizes)
        boxes, scores, labels = self._classify(features, proposals, sizes)
        if not self.with_mask:
            return boxes, scores, labels
        masks = self._mask(features, boxes, labels)
        boxes = boxes / sizes.scale
        if self.paste_masks:
            masks = paste(masks, boxes, sizes.image) >= self.model.roi_head.test_cfg.mask_thr_binary
        return boxes, scores, labels, masks

    def _propose(self, features: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Return the proposals, (P, 4), in pixels of the resized image."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        found = []
        for level, (scores, deltas, anchors, _) in enumerate(_levels(head, features)):
            values, order = _best(scores[:, 0], cfg)
            boxes = decode(head.bbox_coder, anchors[order], deltas[order], sizes.resized)
            found.append((boxes, values, torch.full_like(values, level)))
        boxes, _, _ = _merge(found, cfg)
        return boxes

    def _classify(
        self, features: Sequence[Tensor], boxes: Tensor, sizes: Sizes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels after all stages and NMS."""
        roi_head = self.model.roi_head
        cfg = roi_head.test_cfg
        heads = _stages(roi_head.bbox_head)
        extractors = _stages(roi_head.bbox_roi_extractor)
        logits = []
        boxes = one_more(boxes)
        for index, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            scores, deltas = head(extract(extractor, features, boxes))
            logits.append(scores)
            # if boxes do not depend on the class, the index of any class modulo 1 is 0
            classes = 1 if head.reg_class_agnostic else head.num_classes
            deltas = deltas.reshape(-1, classes, 4)
            if index < len(heads) - 1:  # refine each box for its best class
                best = scores[:, :-1].argmax(1) % classes
                deltas = deltas[torch.arange(best.shape[0], device=best.device), best]
                boxes = decode(head.bbox_coder, boxes, deltas, sizes.resized)
        scores = (sum(logits) / len(logits)).softmax(1)[:-1, :-1]
        index, labels = (scores > cfg.score_thr).nonzero().unbind(1)
        scores = scores[index, labels]
        boxes = decode(
            head.bbox_coder, boxes[index], deltas[index, labels % classes], sizes.resized
        )
        if not self.with_mask:
            boxes = boxes / sizes.scale  # as in mmdet, before NMS
        kept, scores = suppress(boxes, scores, labels, cfg.nms, cfg.max_per_img)
        return boxes[kept], scores, labels[kept]

    def _mask(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the probabilities of the masks inside the boxes, (N, m, m)."""
        roi_head = self.model.roi_head
        heads = _stages(roi_head.mask_head)
        found = []
        boxes, labels = one_more(boxes), one_more(labels)
        for head, extractor in zip(heads, _stages(roi_head.mask_roi_extractor), strict=True):
            logits = head(extract(extractor, features, boxes))
            channel = torch.zeros_like(labels) if head.class_agnostic else labels
            logits = logits[torch.arange(labels.shape[0], device=labels.device), channel]
            found.append(logits.sigmoid())
        return (sum(found) / len(found))[:-1]
