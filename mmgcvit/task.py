"""Which task a config's model is for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from .errors import UserError
from .registry import class_of


@dataclass(frozen=True)
class Task:
    """A kind of model.

    Attributes:
        name: 'detection', 'segmentation' or 'classification'.
        base: Name of the base class of such models in mmdet, mmseg or mmpretrain. It is a name, so
            that a user of one library need not install the others.
        heads: Keys that only the config of such a model has.
        counted_shape: Image height and width at which papers report the complexity.
        timed_shape: Image height and width that are usual in training and inference.
    """

    name: str
    base: str
    heads: tuple[str, ...]
    counted_shape: tuple[int, int]
    timed_shape: tuple[int, int]


DETECTION = Task(
    'detection', 'BaseDetector', ('roi_head', 'bbox_head', 'rpn_head'), (800, 1280), (800, 1280)
)
SEGMENTATION = Task('segmentation', 'BaseSegmentor', ('decode_head',), (512, 2048), (512, 512))
CLASSIFICATION = Task('classification', 'BaseClassifier', ('head',), (224, 224), (224, 224))
TASKS = (DETECTION, SEGMENTATION, CLASSIFICATION)


def task_of(cfg: Config) -> Task | None:
    """Return the task of a config's model, None if it is none of the three.

    The base class of the model decides. For models of other libraries the heads in the config do.
    """
    model = inner_model(cfg)
    cls = class_of(model, MODELS, cfg.get('default_scope'))
    bases = {base.__name__ for base in cls.__mro__} if isinstance(cls, type) else set()
    by_class = (task for task in TASKS if task.base in bases)
    by_heads = (task for task in TASKS if any(head in model for head in task.heads))
    return next(by_class, None) or next(by_heads, None)


def inner_model(cfg: Config) -> Mapping[str, Any]:
    """Return the config of the model itself, without what wraps it; empty if there is none.

    Test-time augmentation wraps it as ``module``, and semi-supervised training and tracking have a
    ``detector``.
    """
    model = cfg.get('model') or {}
    while key := next((key for key in ('module', 'detector') if key in model), None):
        model = model[key]
    return model


def require_task(cfg: Config) -> Task:
    """Return the task of a config's model.

    Raises:
        UserError: If there is no model, or it is none of the three.
    """
    task = task_of(cfg)
    if task is None:
        heads = ', '.join(head for task in TASKS for head in task.heads)
        raise UserError(
            f'the model of {cfg.filename} has none of {heads}: give the config of a detector, a '
            'segmentor or a classifier'
        )
    return task
