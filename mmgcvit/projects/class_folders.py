"""Images in folders of classes, for classification."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from pathlib import PurePosixPath as Relative

from ..errors import UserError
from ..files import write_atomically
from ..sampling import evenly
from ..task import CLASSIFICATION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import Folder
from .names import OF_ANNOTATIONS, OF_IMAGES, is_part_of_split, split_of
from .splits import divide

SAMPLES = 200  # images whose size is read
SHOWN = 5  # classes


@dataclass(frozen=True)
class _Image:
    """An image, its class and its split."""

    path: Relative
    name: str
    split: str | None

    @property
    def classes(self) -> tuple[str]:
        return (self.name,)


def find(folder: Folder) -> str | None:
    """Describe the class folders, or return None if there are none.

    Folders such as ``train_labels`` are not classes, and ``masks`` is a class only if it contains
    photos.
    """
    examples = {image.name: image.path for image in _images(folder)}
    classes = sorted(examples)
    if len(classes) < 2 or any(_is_no_class(folder, *item) for item in examples.items()):
        return None
    more = f' and {len(classes) - SHOWN} more' if len(classes) > SHOWN else ''
    return f'folders of {len(classes)} classes ({", ".join(classes[:SHOWN])}{more})'


def read(folder: Folder, project: Path) -> Data:
    """Read folders of classes, and write the list of images of each split to the project.

    Args:
        folder: The folder.
        project: Folder to write to.

    Raises:
        UserError: If there are no images of two classes to train on.
    """
    images = _images(folder)
    used = {image.path for image in images}
    folder.leave_out(
        [path for path in folder.images if path not in used],
        'images outside of the class folders',
    )
    train, val = divide(images, folder)
    names = sorted({image.name for image in train})
    if len(names) < 2:
        raise UserError(
            f'the training images of {folder.path} have only one class, {names[0]}: put the images '
            'of each class into a separate folder, such as train/CLASS/NAME.jpg'
        )
    folder.leave_out(
        [image.path for image in val if image.name not in names],
        'validation images of classes without training images',
    )
    val = [image for image in val if image.name in names]
    sizes = [folder.size(train[i].path) for i in evenly(len(train), SAMPLES)]
    return Data(
        CLASSIFICATION,
        tuple(names),
        _write_list(project, 'train', train, names),
        _write_list(project, 'val', val, names),
        typical_size(sizes),
    )


def _images(folder: Folder) -> list[_Image]:
    """Return the images in folders of classes.

    Folders that contain all others are skipped. The folders of splits are above or below those of
    the classes. At the top level, they are splits only if all of them have the name of a split, or
    if there are those for training and for another split: otherwise, ``train`` may be a class like
    ``bus``.
    """
    folders = {
        # archives are often extracted to a folder of the same name in themselves
        path: [part for part, _ in groupby(path.parts[:-1]) if part.lower() not in OF_IMAGES]
        for path in folder.images
    }
    folders = {path: parts for path, parts in folders.items() if parts}
    levels = zip(*folders.values(), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len({*level}) == 1, levels))
    folders = {path: parts[shared:] for path, parts in folders.items() if parts[shared:]}
    first, second = (
        {path: split_of(path, parts[level : level + 1]) for path, parts in folders.items()}
        for level in (0, 1)
    )
    splits = set(first.values())
    if None in splits and not ('train' in splits and splits & {'val', 'test'}):
        divided = 'train' in second.values()
        return [
            _Image(path, parts[0], second[path] if divided else None)
            for path, parts in folders.items()
        ]
    return [
        _Image(path, folders[path][1], split)
        for path, split in first.items()
        if split and len(folders[path]) > 1
    ]


def _is_no_class(folder: Folder, name: str, example: Relative) -> bool:
    """Return whether a folder is that of a part of the data, such as the masks for training."""
    if name.lower() in OF_ANNOTATIONS:
        return not folder.is_photo(example)
    return is_part_of_split(name)


def _write_list(project: Path, split: str, images: Sequence[_Image], names: Sequence[str]) -> Split:
    labels = {name: label for label, name in enumerate(names)}
    lines = (f'{image.path} {labels[image.name]}\n' for image in images)
    file = f'{ANNOTATIONS}/{split}.txt'
    write_atomically(project / file, ''.join(lines).encode())
    return Split(len(images), dict(ann_file=in_project(file), data_prefix=''))
