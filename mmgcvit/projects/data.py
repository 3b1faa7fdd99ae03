"""Annotated images, as the config of a project needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..task import Task

ANNOTATIONS = 'annotations'  # folder of a project


class Code(str):
    """Source code in a config file, as opposed to a string."""


def in_project(path: str) -> Code:
    """Return the expression for a path in the project."""
    return Code(f'project + {path!r}')


@dataclass(frozen=True)
class Split:
    """A dataset of a project.

    Attributes:
        images: Number of images.
        settings: Settings of the dataset in the config.
    """

    images: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Annotated images for a task.

    Attributes:
        task: The task.
        classes: Class names, in the order of the labels.
        train: Training split.
        val: Validation split.
        size: Typical width and height of an image in pixels.
        has_masks: Detection: whether all objects have a mask.
        has_empty_images: Detection: whether there are training images without objects.
    """

    task: Task
    classes: tuple[str, ...]
    train: Split
    val: Split
    size: tuple[int, int]
    has_masks: bool = False
    has_empty_images: bool = False


def typical_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the median width and height of images."""
    width, height = (int(median(each)) for each in zip(*sizes, strict=True))
    return width, height
