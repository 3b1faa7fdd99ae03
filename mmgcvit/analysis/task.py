"""What a config's model does, and the image sizes that papers count and time it at."""

from dataclasses import dataclass

from mmengine.config import Config

from ..engine import ToolError


@dataclass(frozen=True)
class Task:
    """A kind of model.

    Attributes:
        name: detection or segmentation.
        counted_shape: H and W at which its complexity is published.
        timed_shape: H and W at which it usually trains and runs.
    """

    name: str
    counted_shape: tuple[int, int]
    timed_shape: tuple[int, int]


DETECTION = Task('detection', (800, 1280), (800, 1280))
SEGMENTATION = Task('segmentation', (512, 2048), (512, 512))


def task_of(cfg: Config) -> Task:
    """Tell the task of a config from the heads of its model.

    Raises:
        ToolError: If it has no model, or one with none of the heads known here.
    """
    model = cfg.get('model') or {}
    for keys, task in (
        (('roi_head', 'bbox_head'), DETECTION),
        (('decode_head',), SEGMENTATION),
    ):
        if any(key in model for key in keys):
            return task
    raise ToolError(
        f'the model of {cfg.filename} has none of roi_head, bbox_head and decode_head: give the '
        'config of a detector or segmentor'
    )
