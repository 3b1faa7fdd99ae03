"""Images in folders of classes, for classification."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative

from ..errors import UserError
from ..files import write_atomically
from ..sampling import evenly
from ..task import CLASSIFICATION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import CONTAINERS, Folder
from .splits import divide, split_of

SAMPLES = 200  # images of which the size is read


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
    """Return the folders of classes in words, or None if there are none.

    Folders such as ``images`` and ``labels`` are not classes.
    """
    classes = {image.name.lower() for image in _images(folder)}
    if len(classes) < 2 or classes & CONTAINERS:
        return None
    return f'folders of {len(classes)} classes'


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
        'images are left out, because they are in no folder of a class',
    )
    train, val = divide(images, folder)
    names = sorted({image.name for image in train})
    if len(names) < 2:
        raise UserError(
            f'the training images of {folder.path} have one class, {names[0]}: put the images of '
            'each class into a folder of its own, such as train/CLASS/NAME.jpg'
        )
    folder.leave_out(
        [image.path for image in val if image.name not in names],
        'validation images are left out, because no training image has their class',
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

    Folders are splits only if all of them are: otherwise, ``train`` may be a class beside ``bus``.
    """
    first = {path.parts[0] for path in folder.images if len(path.parts) > 1}
    are_splits = all(split_of(Relative(), [name]) for name in first)
    depth = 1 if are_splits else 0
    return [
        _Image(path, path.parts[depth], split_of(path, path.parts[:depth]))
        for path in folder.images
        if len(path.parts) > depth + 1
    ]


def _write_list(project: Path, split: str, images: Sequence[_Image], names: Sequence[str]) -> Split:
    lines = (f'{image.path} {names.index(image.name)}\n' for image in images)
    file = f'{ANNOTATIONS}/{split}.txt'
    write_atomically(project / file, ''.join(lines).encode())
    return Split(len(images), dict(ann_file=in_project(file), data_prefix=''))
