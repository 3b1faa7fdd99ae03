"""The task of a config's model."""

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
        base: Name of the base class of these models in mmdet, mmseg or mmpretrain. It is a name
            because users may have installed only one of the libraries.
        heads: Keys that only the configs of these models have.
        counted_shape: Image height and width at which papers report the complexity.
        timed_shape: Typical image height and width in training and inference.
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
    """Return the task of a config's model, or None if it is none of the three.

    The base class of the model decides. For models of other libraries, the heads in the config
    decide.
    """
    model = inner_model(cfg)
    cls = class_of(model, MODELS, cfg.get('default_scope'))
    bases = {base.__name__ for base in cls.__mro__} if isinstance(cls, type) else set()
    by_class = (task for task in TASKS if task.base in bases)
    by_heads = (task for task in TASKS if any(head in model for head in task.heads))
    return next(by_class, None) or next(by_heads, None)


def inner_model(cfg: Config) -> Mapping[str, Any]:
    """Return the config of the model without its wrappers, or an empty dict without a model.

    Test-time augmentation wraps the model as ``module``, semi-supervised training and tracking as
    ``detector``.
    """
    model = cfg.get('model') or {}
    while key := next((key for key in ('module', 'detector') if key in model), None):
        model = model[key]
    return model


def require_task(cfg: Config) -> Task:
    """Return the task of a config's model.

    Raises:
        UserError: If there is no model, or its task is none of the three.
    """
    task = task_of(cfg)
    if task is None:
        heads = ', '.join(head for task in TASKS for head in task.heads)
        raise UserError(
            f'the model of {cfg.filename} has none of {heads}: use the config of a detector, '
            'segmentor or classifier'
        )
    return task
