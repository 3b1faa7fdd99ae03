"""Recipes for fine-tuning on one GPU. The values are ours and were not tuned."""

import math
from dataclasses import dataclass, replace

from ..task import CLASSIFICATION, DETECTION, SEGMENTATION
from .data import Data

VALIDATIONS = 20  # at most, per training run


@dataclass(frozen=True)
class Recipe:
    """Model and hyperparameters of a task.

    Attributes:
        model: Name of the model for comments and messages.
        base: Config to inherit from.
        batch_size: Images per iteration.
        rate: Learning rate of ``base``.
        rate_batch: Batch size of this learning rate.
        iterations: Number of iterations, within the limits of ``epochs``.
        epochs: Minimum and maximum number of epochs.
    """

    model: str
    base: str
    batch_size: int
    rate: float
    rate_batch: int
    iterations: int
    epochs: tuple[int, int]

    @property
    def learning_rate(self) -> float:
        """The learning rate, scaled with the square root of the batch size, as suits AdamW."""
        return float(f'{self.rate * math.sqrt(self.batch_size / self.rate_batch):.2g}')


MASKS = Recipe(
    model='Mask R-CNN',
    base='detection/mask-rcnn_gcvit-t_fpn_1x_coco.py',
    batch_size=2,
    rate=1e-4,
    rate_batch=16,
    iterations=10000,
    epochs=(12, 100),
)
BOXES = replace(MASKS, model='Faster R-CNN', base='detection/faster-rcnn_gcvit-t_fpn_1x_coco.py')
SEGMENTOR = Recipe(
    model='UPerNet',
    base='segmentation/upernet_gcvit-t_160k_ade20k-512x512.py',
    batch_size=4,
    rate=6e-5,
    rate_batch=16,
    iterations=20000,
    epochs=(20, 200),
)
CLASSIFIER = Recipe(
    model='A classifier',
    base='classification/custom_folders.py',
    batch_size=32,
    rate=5e-5,
    rate_batch=256,
    iterations=3000,
    epochs=(30, 100),
)


@dataclass(frozen=True)
class Schedule:
    """The length of a training.

    Attributes:
        iterations: Iterations per epoch.
        epochs: Number of epochs.
    """

    iterations: int
    epochs: int

    @property
    def total(self) -> int:
        """Total number of iterations, which is larger than that of the warm-up."""
        return max(3, self.iterations * self.epochs)

    @property
    def warmup(self) -> int:
        """Iterations of the warm-up, at least 2: with 1, mmengine keeps the first learning rate."""
        return max(2, min(500, self.total // 10))

    @property
    def val_interval(self) -> int:
        """Epochs between validations."""
        return math.ceil(self.epochs / VALIDATIONS)


def recipe_of(data: Data) -> Recipe:
    """Return the recipe for a task, and for objects with or without masks."""
    detector = MASKS if data.has_masks else BOXES
    return {DETECTION: detector, SEGMENTATION: SEGMENTOR, CLASSIFICATION: CLASSIFIER}[data.task]


def schedule_of(recipe: Recipe, images: int, epochs: int | None = None) -> Schedule:
    """Return the schedule for a number of training images.

    Args:
        recipe: The recipe.
        images: Number of training images.
        epochs: Number of epochs. By default, it follows from the recipe's iterations and limits.
    """
    iterations = math.ceil(images / recipe.batch_size)
    if epochs is None:
        fewest, most = recipe.epochs
        epochs = min(max(math.ceil(recipe.iterations / iterations), fewest), most)
    return Schedule(iterations, epochs)
