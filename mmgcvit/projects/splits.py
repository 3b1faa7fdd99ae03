"""Division of annotated images into training and validation."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath as Relative
from typing import Protocol, TypeVar

from ..errors import UserError
from .folder import Folder

VAL_FRACTION = 0.2


class Item(Protocol):
    """An annotated image."""

    @property
    def path(self) -> Relative:
        """Path relative to the folder of the data."""

    @property
    def split(self) -> str | None:
        """The split that the folder assigns: 'train', 'val', 'test', or None."""

    @property
    def classes(self) -> Collection:
        """Classes in the image."""


T = TypeVar('T', bound=Item)


def listed_splits(folder: Folder, task: str) -> dict[str, str]:
    """Return the splits of images by their names, as Pascal VOC lists them.

    Args:
        folder: The folder.
        task: Name of the folder in ``ImageSets`` that contains ``train.txt`` and ``val.txt``.
    """
    splits: dict[str, str] = {}
    for split in ('test', 'val', 'train'):
        parts = ('ImageSets', task, f'{split}.txt')
        for path in (each for each in folder.files if each.parts[-3:] == parts):
            splits |= {Relative(line).name: split for line in folder.lines(path)}
    return splits


def divide(items: Sequence[T], folder: Folder) -> tuple[list[T], list[T]]:
    """Divide items into training and validation.

    If the folder assigns items to both, these are used. Otherwise, all items that are not of a test
    split are divided at random, with the same result every time.

    Args:
        items: The items.
        folder: The folder, to which notes are added.

    Raises:
        UserError: If there are fewer than two items, or if an image is in both splits.
    """
    named: dict[str | None, list[T]] = defaultdict(list)
    for item in items:
        named[item.split].append(item)
    folder.leave_out(
        [item.path for item in named.pop('test', [])],
        'images of a test split (set test_dataloader and test_evaluator to use them)',
    )
    if 'train' in named and 'val' in named:
        train, val = named['train'], named['val']
        folder.leave_out(
            [item.path for item in named.get(None, [])],
            'images that are not in a split',
        )
    else:
        rest = [item for part in named.values() for item in part]
        if len(rest) < 2:
            outside = ' outside of the test split' if len(rest) < len(items) else ''
            raise UserError(
                f'the number of annotated images in {folder.path}{outside} is {len(rest)}, and a '
                'training needs at least 2: one to train on and one to validate with'
            )
        missing = 'training' if 'val' in named else 'validation'
        train, val = _at_random(sorted(rest, key=lambda item: item.path))
        folder.notes.append(
            f'the folder has no {missing} split: {len(val)} of {len(rest)} images, chosen at '
            'random, are used for validation'
        )
    _require_different(folder, train, val)
    return train, val


def _at_random(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Choose items for validation, but keep an item of each class for training."""
    left = Counter(name for item in items for name in set(item.classes))
    number = max(1, round(VAL_FRACTION * len(items)))
    train: list[T] = []
    val: list[T] = []
    for item in random.Random(0).sample(items, len(items)):
        names = set(item.classes)
        if len(val) < number and all(left[name] > 1 for name in names):
            val.append(item)
            left.subtract(names)
        else:
            train.append(item)
    if not val:
        val.append(train.pop())
    return sorted(train, key=lambda item: item.path), sorted(val, key=lambda item: item.path)


def _require_different(folder: Folder, train: Sequence[Item], val: Sequence[Item]) -> None:
    """Raise a UserError if an image is in both splits, as a symlink too."""
    first = {(folder.path / item.path).resolve(): item.path for item in train}
    both = [item.path for item in val if (folder.path / item.path).resolve() in first]
    if both:
        same = first[(folder.path / both[0]).resolve()]
        raise UserError(
            f'some images are in both the training and the validation split ({len(both)}, for '
            f'example {both[0]}{f", the same file as {same}" if same != both[0] else ""}): remove '
            'them from one split, because metrics on training images are meaningless'
        )
