"""Annotations in Pascal VOC's format: an XML file per image."""

import re
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any
from xml.etree import ElementTree

from ..errors import UserError, counted, describe
from ..progress import with_progress
from .data import Data
from .detection import Picture, finish
from .folder import Folder, partners
from .names import split_of
from .splits import listed_splits


def find(folder: Folder) -> str | None:
    """Describe the annotation files of a folder, or return None if there are none."""
    files = partners(folder.images, folder.with_suffix('.xml'), anywhere=True)
    return f'Pascal VOC annotations ({counted(len(files), ".xml file")})' if files else None


def without_image(folder: Folder) -> str:
    """Return the message that the XML files belong to no image, or '' without such files."""
    files = [
        file
        for file in folder.with_suffix('.xml')
        if re.search(rb'<annotation[\s/>]', (folder.path / file).read_bytes()[:1000])
    ]
    return folder.no_image_of(files, '.xml file')


def read(folder: Folder, project: Path) -> Data:
    """Read the XML files of a folder, and write COCO annotations to the project.

    ``ImageSets/Main/train.txt`` and ``val.txt`` list the images of the splits. Objects
    marked as difficult become crowds, which training and validation ignore.

    Args:
        folder: The folder.
        project: Folder to write to.

    Raises:
        UserError: If a file cannot be read.
    """
    files = partners(folder.images, folder.with_suffix('.xml'), anywhere=True)
    folder.leave_out(
        [image for image in folder.images if image not in files],
        'images without an .xml file',
    )
    used = set(files.values())
    folder.leave_out(
        [file for file in folder.with_suffix('.xml') if file not in used],
        '.xml files without an image of their name',
    )
    splits = listed_splits(folder, 'Main')
    pictures = []
    for image, file in with_progress(list(files.items()), 'reading annotations'):
        size, objects = _read(folder, file)
        split = splits.get(image.stem, split_of(image))
        pictures.append(Picture(image, size or folder.size(image), objects, split))
    names = {each['name'] for picture in pictures for each in picture.objects}
    return finish(folder, project, pictures, sorted(names))


def _read(folder: Folder, file: Relative) -> tuple[tuple[int, int] | None, list[dict[str, Any]]]:
    """Return the width and height of the image, if the file contains them, and its objects."""
    objects = []
    try:
        root = ElementTree.parse(folder.path / file).getroot()
        width, height = (int(root.findtext(f'size/{key}') or 0) for key in ('width', 'height'))
        for each in root.iter('object'):
            keys = ('xmin', 'ymin', 'xmax', 'ymax')
            left, top, right, bottom = (float(_text(each, f'bndbox/{key}')) for key in keys)
            if not (left < right and top < bottom):
                raise ValueError(f'box {left:g}, {top:g}, {right:g}, {bottom:g} is empty')
            box = [left, top, right - left, bottom - top]
            difficult = (each.findtext('difficult') or '0').strip() == '1'
            name = _text(each, 'name')
            area = box[2] * box[3]
            objects.append(dict(name=name, bbox=box, area=area, iscrowd=int(difficult)))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f'{folder.path / file} is not an annotation of Pascal VOC ({describe(error, 120)}): '
            'each object needs a name and a bndbox with numbers xmin < xmax and ymin < ymax'
        ) from error
    return (width, height) if width and height else None, objects


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the text of a descendant of an element.

    Raises:
        ValueError: If there is none.
    """
    text = (element.findtext(path) or '').strip()
    if not text:
        raise ValueError(f'no {path}')
    return text
