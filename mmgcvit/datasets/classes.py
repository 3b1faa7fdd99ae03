"""A small synthetic dataset for classification: one circle, rectangle or triangle per image.

The folders are those of mmpretrain's ``CustomDataset``, one per class, as in ImageNet::

    ROOT/shape_classes.json                                    settings of the dataset
    ROOT/{train,val}/{circle,rectangle,triangle}/00000001.jpg
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .folder import Layout, Settings, draw_dataset
from .scene import CLASSES, draw_scene
from .shapes import jpeg

PARTS = {'train': 2, 'val': 3}  # 0 and 1 are the splits of the shapes dataset


def draw_shape_classes(
    root: str | os.PathLike,
    num_train: int = Settings.num_train,
    num_val: int = Settings.num_val,
    seed: int = Settings.seed,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Draw the dataset in the folder ``root``.

    The images are like those of :func:`~mmgcvit.datasets.draw_shapes`, with one large shape each.
    The numbers of images per class differ by at most one. Equal settings give equal bytes,
    and image k of a split does not depend on the number of images.

    Args:
        root: Folder of the dataset. Missing parent folders are created.
        num_train: Number of training images.
        num_val: Number of validation images.
        seed: Seed, at least 0.
        overwrite: See :func:`~mmgcvit.datasets.folder.draw_dataset`.
        progress: Whether to print messages, and a progress bar on a terminal.

    Returns:
        True if the dataset was drawn, False if a complete dataset with these settings existed.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If ``root`` exists and must not be replaced, see
            :func:`~mmgcvit.datasets.folder.draw_dataset`.
    """
    settings = Settings(num_train, num_val, seed)
    return draw_dataset(SHAPE_CLASSES, root, settings, overwrite, progress)


def _images(settings: Settings) -> Iterator[tuple[str, int, str]]:
    """Yield split, number and class of each image."""
    for split, count in (('train', settings.num_train), ('val', settings.num_val)):
        for index in range(1, count + 1):
            yield split, index, CLASSES[index % len(CLASSES)]


def _path(root: Path, split: str, index: int, name: str) -> Path:
    return root / split / name / f'{index:08d}.jpg'


def _files(root: Path, settings: Settings) -> Iterator[Path]:
    yield from (_path(root, *image) for image in _images(settings))


def _draw(root: Path, settings: Settings, update: Callable[[], None]) -> None:
    for split in PARTS:
        for name in CLASSES:  # also a class without images: its folder determines the labels
            (root / split / name).mkdir(parents=True)
    for split, index, name in _images(settings):
        scene = draw_scene(settings.seed, PARTS[split], index, only=name)
        _path(root, split, index, name).write_bytes(jpeg(scene.image))
        update()


SHAPE_CLASSES = Layout('shape classes', 'shape_classes.json', _files, _draw)
