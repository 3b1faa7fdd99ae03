"""Images in folders of classes, for classification."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative

from ..errors import UserError
from ..files import write_atomically
from ..sampling import evenly
from ..task import CLASSIFICATION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import CONTAINERS, OF_ANNOTATIONS, OF_IMAGES, Folder
from .splits import divide, split_of

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

    Folders such as ``masks`` and ``train_labels`` are not classes.
    """
    classes = sorted({image.name for image in _images(folder)})
    if len(classes) < 2 or any(map(_is_no_class, classes)):
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

    Folders at the top level are splits only if all of them have the name of a split, or if there
    are those for training and for another split: otherwise, ``train`` may be a class like ``bus``.
    """
    folders = {
        path: [part for part in path.parts[:-1] if part.lower() not in OF_IMAGES]
        for path in folder.images
    }
    first = {path: split_of(path, parts[:1]) for path, parts in folders.items() if parts}
    splits = set(first.values())
    if None in splits and not ('train' in splits and splits & {'val', 'test'}):
        return [_Image(path, folders[path][0], None) for path in first]
    return [
        _Image(path, folders[path][1], split)
        for path, split in first.items()
        if split and len(folders[path]) > 1
    ]


def _is_no_class(name: str) -> bool:
    """Return whether a folder is that of a part of the data, such as the masks for training."""
    words = [word for word in re.split(r'[-_ ]', name.lower()) if word]
    parts = [word for word in words if not split_of(Relative(), [word])]
    return name.lower() in OF_ANNOTATIONS or (
        0 < len(parts) < len(words) and set(parts) <= {*CONTAINERS, 'seg'}
    )


def _write_list(project: Path, split: str, images: Sequence[_Image], names: Sequence[str]) -> Split:
    labels = {name: label for label, name in enumerate(names)}
    lines = (f'{image.path} {labels[image.name]}\n' for image in images)
    file = f'{ANNOTATIONS}/{split}.txt'
    write_atomically(project / file, ''.join(lines).encode())
    return Split(len(images), dict(ann_file=in_project(file), data_prefix=''))
