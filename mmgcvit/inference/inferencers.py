"""Inferencers of mmdet, mmseg and mmpretrain for a trained model.

The libraries' own inferencers execute code in checkpoints, load mismatched checkpoints partially,
and do not always read images as the config does. The inferencers here receive a finished
:class:`TrainedModel` and use its pipeline.

H, W: height and width of an image in pixels.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import UserError
from ..registry import class_of
from ..task import CLASSIFICATION, DETECTION, SEGMENTATION
from ..visualization.cam import SCORE_THR, require_score
from ..visualization.painting import VISUALIZER_TYPES, without_empty_map
from .model import TrainedModel

OPACITY = 0.5  # of the colors of segments, through which the image is visible
TOP = 5  # classes that are drawn on an image
LEGIBLE = 224  # shortest edge of an image in pixels on which names of classes are drawn


@dataclass(frozen=True)
class Result:
    """Predictions for an image.

    Attributes:
        picture: The image with the predictions, RGB, (H, W, 3), uint8. Classifiers enlarge small
            images.
        record: The predictions as plain values, for JSON.
        summary: The predictions in a few words.
        label_map: Segmentors: index of the class of each pixel, (H, W), uint8 or uint16.
    """

    picture: np.ndarray
    record: dict[str, Any]
    summary: str
    label_map: np.ndarray | None = None


class Inferencer(Protocol):
    """An inferencer of the libraries, with one more method."""

    def infer(self, path: str | os.PathLike) -> Result:
        """Predict and draw one image file.

        Raises:
            UserError: If the test pipeline cannot load or process the file.
        """


def build_inferencer(trained: TrainedModel, score_thr: float | None = None) -> Inferencer:
    """Return the inferencer of a model's task, which also works like those of the libraries.

    Args:
        trained: Model, which also provides the pipeline and the class names.
        score_thr: Detectors: only instances with a higher score are drawn, 0 to 1. Defaults to 0.3.
            The records have all instances.

    Raises:
        UserError: If ``score_thr`` is out of range or the model is not a detector.
    """
    if score_thr is None:
        score_thr = SCORE_THR
    elif trained.task is not DETECTION:
        raise UserError(
            f'--score-thr selects the instances of detectors, and {trained.cfg.filename} is a '
            f'config for {trained.task.name}: leave it out'
        )
    require_score(score_thr)
    if trained.task is SEGMENTATION:
        return _segmentor(trained)
    return _classifier(trained) if trained.task is CLASSIFICATION else _detector(trained, score_thr)


class _OfTrainedModel(BaseInferencer):
    """Base class, for mmengine's inferencers, that uses a finished model and its pipeline."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        trained.model.dataset_meta = dict(classes=trained.classes, palette=trained.palette)
        device = next(trained.model.parameters()).device
        super().__init__(_with_visualizer(trained), device=str(device))
        self.show_progress = False

    def _init_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.trained.model

    def _init_pipeline(self, cfg: Config) -> Any:
        return self.trained.load_sample

    def _init_collate(self, cfg: Config) -> Any:
        return pseudo_collate

    def predict(self, path: str | os.PathLike) -> Any:
        """Return the data sample of an image file with its predictions."""
        (batch,) = self.preprocess([os.fspath(path)])
        (sample,) = self.forward(batch[1] if isinstance(batch, tuple | list) else batch)
        return sample.cpu()


def _with_visualizer(trained: TrainedModel) -> Config:
    """Return the config with a visualizer that draws, and that logs to no file or server."""
    settings = dict(trained.cfg.get('visualizer') or {})
    cls = class_of(settings, VISUALIZERS, trained.cfg.get('default_scope'))
    drawing = class_of(VISUALIZER_TYPES[trained.task], VISUALIZERS)
    if not (isinstance(cls, type) and issubclass(cls, drawing)):
        cls, settings = drawing, {}
    for key in ('type', 'vis_backends', 'save_dir', '_scope_'):
        settings.pop(key, None)
    return Config(dict(test_dataloader={}, visualizer=dict(type=cls, **settings)))


def _detector(trained: TrainedModel, score_thr: float) -> Inferencer:
    from mmdet.apis import DetInferencer

    class Detector(_OfTrainedModel, DetInferencer):
        def infer(self, path: str | os.PathLike) -> Result:
            image = trained.load_image(path)
            sample = self.predict(path)
            segments = _segments(sample, trained.classes)
            sample = without_empty_map(sample, len(trained.classes))
            with warnings.catch_warnings():
                # of every box that ends at the border of the image
                warnings.filterwarnings('ignore', 'Warning: The .* is out of bounds')
                (picture,) = self.visualize(
                    [image], [sample], return_vis=True, pred_score_thr=score_thr
                )
            sample.pop('pred_panoptic_seg', None)  # mmdet needs panopticapi to return it
            (found,) = self.postprocess([sample])['predictions']
            names = [trained.classes[label] for label in found.get('labels', ())]
            drawn = Counter(
                name
                for name, score in zip(names, found.get('scores', ()), strict=True)
                if score > score_thr
            )
            record = dict(_size(image), **found, names=names)
            if segments is not None:
                record['segments'] = segments
                drawn = Counter(segment['name'] for segment in segments)
            summary = ', '.join(f'{number} {name}' for name, number in drawn.most_common())
            return Result(picture, record, summary or 'no instances')

    return Detector(trained)


def _segments(sample: BaseDataElement, classes: Sequence[str]) -> list[dict] | None:
    """Return the segments of a panoptic prediction, or None if the model makes no such one."""
    from mmdet.evaluation import INSTANCE_OFFSET

    if 'pred_panoptic_seg' not in sample:
        return None
    ids, pixels = sample.pred_panoptic_seg.sem_seg.unique(return_counts=True)
    found = zip((ids % INSTANCE_OFFSET).tolist(), pixels.tolist(), strict=True)
    return [
        dict(label=label, name=classes[label], pixels=count)
        for label, count in found
        if label < len(classes)  # others stand for pixels without a segment
    ]


def _segmentor(trained: TrainedModel) -> Inferencer:
    from mmseg.apis import MMSegInferencer

    class Segmentor(_OfTrainedModel, MMSegInferencer):
        def infer(self, path: str | os.PathLike) -> Result:
            image = trained.load_image(path)
            sample = self.predict(path)
            (picture,) = self.visualize([image], [sample], return_vis=True, opacity=OPACITY)
            labels = self.postprocess([sample], None)['predictions']
            # mmseg thresholds the probability of two classes, which gives floats
            labels = labels.astype(np.int64)
            values, pixels = np.unique(labels, return_counts=True)
            segments = [
                dict(label=int(value), name=_name(trained.classes, value), pixels=int(count))
                for value, count in zip(values, pixels, strict=True)
            ]
            largest = np.argsort(-pixels, kind='stable')[:TOP]
            summary = ', '.join(
                f'{_name(trained.classes, values[i]).strip()} {pixels[i] / labels.size:.0%}'
                for i in largest
            )
            dtype = np.uint8 if len(trained.classes) < 256 else np.uint16
            record = dict(_size(image), segments=segments)
            return Result(picture, record, summary, labels.astype(dtype))

    return Segmentor(trained)


def _classifier(trained: TrainedModel) -> Inferencer:
    from mmpretrain.apis import ImageClassificationInferencer

    class Classifier(ImageClassificationInferencer):
        def _init_pipeline(self, cfg: Config) -> Any:
            return trained.load_sample

        def preprocess(self, inputs: Sequence[str], batch_size: int = 1) -> Any:
            # mmpretrain's method reads the images itself
            return super(ImageClassificationInferencer, self).preprocess(inputs, batch_size)

        def infer(self, path: str | os.PathLike) -> Result:
            image = trained.load_image(path)
            (batch,) = self.preprocess([os.fspath(path)])
            (sample,) = self.forward(batch)
            (found,) = self.postprocess([sample], None)
            found['pred_scores'] = found['pred_scores'].tolist()
            best = torch.topk(sample.pred_score, min(TOP, len(trained.classes))).indices
            # the visualizer draws the classes in pred_label
            picture = self.visualizer.visualize_cls(
                image,
                sample.clone().set_pred_label(best),
                classes=self.classes,
                draw_gt=False,
                resize=LEGIBLE if min(image.shape[:2]) < LEGIBLE else None,
            )
            summary = f'{found["pred_class"]} {found["pred_score"]:.2f}'
            return Result(picture, dict(_size(image), **found), summary)

    trained.model._config = trained.cfg
    inferencer = Classifier(trained.model, pretrained=False, classes=trained.classes)
    settings = _with_visualizer(trained).visualizer
    inferencer.visualizer = class_of(settings.pop('type'), VISUALIZERS)(**settings)
    return inferencer


def _size(image: np.ndarray) -> dict[str, int]:
    return dict(height=image.shape[0], width=image.shape[1])


def _name(classes: Sequence[str], label: int) -> str:
    # mmseg ignores the label 255
    return classes[label] if label < len(classes) else f'label {label}'
