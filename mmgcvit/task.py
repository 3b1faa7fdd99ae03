"""What a config's model does, asked in this one place."""

from dataclasses import dataclass

from mmengine.config import Config
from mmengine.registry import MODELS

from .errors import UserError
from .registry import class_of


@dataclass(frozen=True)
class Task:
    """A kind of model.

    Attributes:
        name: detection, segmentation or classification.
        base: Name of the class that such models derive from, in mmdet, mmseg or mmpretrain. It is
            a name, so that a user of one library need not install the others.
        heads: Keys of a model's config that only this kind has.
        counted_shape: Image height and width at which papers report the complexity.
        timed_shape: Image height and width of usual training and inference.
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

    The class of the model decides; the heads in its config do for models of other libraries.
    """
    model = cfg.get('model') or {}
    while 'module' in model:  # test-time augmentation wraps the model
        model = model['module']
    cls = class_of(model, MODELS, cfg.get('default_scope'))
    bases = {base.__name__ for base in cls.__mro__} if isinstance(cls, type) else set()
    by_class = (task for task in TASKS if task.base in bases)
    by_heads = (task for task in TASKS if any(head in model for head in task.heads))
    return next(by_class, None) or next(by_heads, None)


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
