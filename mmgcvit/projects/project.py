"""A project: a config for a folder of annotated images."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative

import torch

from ..errors import UserError, counted, one_line, printable
from ..files import replacing
from ..models import GCViT
from ..task import CLASSIFICATION, DETECTION, SEGMENTATION, Task
from ..weights import fit, open_checkpoint
from ..weights.checkpoint import shapes_of
from . import class_folders, coco, label_maps, voc, yolo
from .config import CONFIG, config_text
from .data import Data
from .folder import Folder
from .recipes import recipe_of, schedule_of


@dataclass(frozen=True)
class Format:
    """A layout of annotated images.

    Attributes:
        task: What is trained on it.
        find: Describes the annotations of this format in a folder, or returns None.
        read: Reads a folder, and writes files to the project.
        without_image: Returns the message that the annotation files belong to no image, or ''.
    """

    task: Task
    find: Callable[[Folder], str | None]
    read: Callable[[Folder, Path], Data]
    without_image: Callable[[Folder], str] = lambda folder: ''


FORMATS = {
    'coco': Format(DETECTION, coco.find, coco.read),
    'yolo': Format(DETECTION, yolo.find, yolo.read, yolo.without_image),
    'voc': Format(DETECTION, voc.find, voc.read, voc.without_image),
    'masks': Format(SEGMENTATION, label_maps.find, label_maps.read, label_maps.without_image),
    'folders': Format(CLASSIFICATION, class_folders.find, class_folders.read),
}


def new_project(
    project: str | os.PathLike,
    data: str | os.PathLike,
    task: str | None = None,
    form: str | None = None,
    arch: str = 'tiny',
    epochs: int | None = None,
    weights: str | None = None,
) -> Path:
    """Write a project for a folder of annotated images, and print what was found.

    Args:
        project: Folder of the project, which must be new or empty.
        data: Folder of the images and annotations. Nothing is written to it.
        task: Name of the task, if the folder has annotations for several.
        form: Key in ``FORMATS``, if the folder has annotations in several formats.
        arch: Size of the backbone.
        epochs: Number of epochs. By default, it depends on the number of training images.
        weights: Checkpoint of the backbone, or 'none' to start from random weights. By default,
            NVIDIA's.

    Returns:
        The config of the project.

    Raises:
        UserError: If the annotations or the weights cannot be used, or the project cannot be
            written there. Nothing is written in this case.
    """
    # not resolved: a path with a symlink may be the one that stays valid
    project, data = (Path(os.path.abspath(path)) for path in (project, data))
    _require_folders(project, data)
    if epochs is not None and epochs < 1:
        raise UserError(f'--epochs must be at least 1, got {epochs}')
    folder = Folder(data)
    form, found = _choose(folder, task, form)
    print(printable(f'{data}: {found}'), flush=True)
    weights = _require_weights(weights, arch)
    try:
        with replacing(project) as partial:
            partial.mkdir()
            content = FORMATS[form].read(folder, partial)
            text = config_text(content, data, project, arch, epochs, weights)
            (partial / CONFIG).write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'{project} was not written ({one_line(error)}): correct the permissions, free some '
            'space, or pass another folder'
        ) from error
    for note in folder.notes:
        print(printable(f'note: {note}'))
    recipe = recipe_of(content)
    length = schedule_of(recipe, content.train.images, epochs)
    print(
        f'{content.task.name}: {counted(len(content.classes), "class", "classes")}, '
        f'{counted(content.train.images, "image")} for training, {content.val.images} for '
        'validation'
    )
    number = counted(length.epochs, 'epoch')
    print(f'{recipe.model} with GC ViT ({arch}), {number}: {project / CONFIG}')
    return project / CONFIG


def _require_folders(project: Path, data: Path) -> None:
    """Raise a UserError unless the data exist and the project can be created."""
    if not data.is_dir():
        kind = 'is a file' if data.exists() else 'does not exist'
        raise UserError(
            f'--data {data} {kind}: pass the folder that contains the images and their annotations'
        )
    if project.resolve().is_relative_to(data.resolve()):
        raise UserError(
            f'the project {project} is inside the data folder {data}, to which nothing is written: '
            'pass a folder outside of it'
        )
    above = next((path for path in (project, *project.parents) if path.exists()), None)
    if above is not None and not above.is_dir():
        raise UserError(f'{above} is a file: pass a new folder for the project')
    if project.is_dir() and any(project.iterdir()):
        raise UserError(f'{project} is not empty: pass a new folder for the project')
    if project == Path.cwd():
        raise UserError(f'{project} is the current folder: pass the name of a new folder')


def _require_weights(weights: str | None, arch: str) -> str | None:
    """Return the address of the weights, absolute if it is a path.

    Raises:
        UserError: If they are not available, or not those of a backbone of this size.
    """
    if weights in (None, 'none'):
        return weights
    if '://' not in weights:
        weights = os.path.abspath(os.path.expanduser(weights))
    with torch.device('meta'):  # only shapes are needed
        network = GCViT(arch=arch)
    fit(open_checkpoint(weights), shapes_of(network.state_dict()))
    return weights


def _choose(folder: Folder, task: str | None, form: str | None) -> tuple[str, str]:
    """Return the format to read, and a description of the annotations."""
    found = {name: words for name, each in FORMATS.items() if (words := each.find(folder))}
    if form is not None and form not in found:
        raise UserError(
            FORMATS[form].without_image(folder)
            or f'--format {form}: {folder.path} has no such annotations. It has '
            f'{" and ".join(found.values()) or folder.kinds()}: '
            + (f'pass --format {next(iter(found))}' if found else 'pass another folder')
        )
    fitting = {name: words for name, words in found.items() if form in (None, name)}
    fitting = {
        name: words for name, words in fitting.items() if task in (None, FORMATS[name].task.name)
    }
    if len(fitting) > 1 and form is None:
        fitting.pop('folders', None)  # images of any format may be in several folders
    unread = _unread(folder)
    if list(fitting) == ['folders'] and form is None and unread:
        raise UserError(
            f'{folder.path} has {found["folders"]}, and annotations that are not read.{unread} If '
            'the folders are the classes of their images, pass --format folders'
        )
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise UserError(
            f'{folder.path} has several kinds of annotations ({", ".join(fitting.values())}): '
            f'choose one with --format {" or --format ".join(fitting)}'
        )
    if found:
        names = sorted({FORMATS[name].task.name for name in (found if form is None else [form])})
        raise UserError(
            f'--task {task} does not match {folder.path}, which has {", ".join(found.values())}: '
            f'pass --task {" or --task ".join(names)}, or a folder with other annotations'
        )
    raise UserError(_nothing(folder))


def _nothing(folder: Folder) -> str:
    """Return the message for a folder without annotations, which lists the formats."""
    hint = f' {folder.notes[0]}.' if folder.notes else ''
    found = (each.without_image(folder) for each in FORMATS.values())
    if not hint and (text := next(filter(None, found), '')):
        return text
    hint = hint or _unread(folder)
    tables = folder.with_suffix('.csv')
    if tables and not hint:
        hint = f' {tables[0]} is a table, which is not read.'
        if tables[0].name == '_classes.csv':
            hint = f' {tables[0]} assigns several classes to an image, which is not supported.'
    return (
        f'{folder.path} has no annotations in a known format ({folder.kinds()}).{hint} Add one of '
        'these: a .json file in the format of COCO; a .txt file of YOLO or an .xml file of Pascal '
        'VOC for each image; label maps in a folder masks next to images; a folder of images for '
        'each class'
    )


def _unread(folder: Folder) -> str:
    """Return a sentence about annotations in formats that are not read, or ''."""
    for file, content in folder.documents.items():
        if isinstance(content, dict) and 'shapes' in content:
            return f' {file} is in the format of LabelMe: convert such files to COCO.'
        if isinstance(content, dict) and 'images' in content:
            return f' {file} lists images, but no annotations with a category_id.'
    stems = {image.stem for image in folder.images}
    for file in folder.with_suffix('.json', '.xml'):
        if {file.stem, Relative(file.stem).stem} & stems:
            return f' {file} belongs to an image by its name: export the annotations as COCO.'
    for file in folder.with_suffix('.xml'):
        if b'<image ' in (folder.path / file).read_bytes()[:100000]:
            return f' {file} is in the format of CVAT: export the annotations as COCO.'
    # not label maps: the names of their folders may be those of classes
    if text := yolo.without_image(folder) or voc.without_image(folder):
        return f' {text[0].upper()}{text[1:]}.'
    return ''
