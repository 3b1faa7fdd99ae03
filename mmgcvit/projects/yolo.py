"""Labels in YOLO's format: a text file per image, with boxes or polygons in fractions of its size.

A line of a label file is ``CLASS X Y WIDTH HEIGHT``, with the center of a box, or
``CLASS X1 Y1 X2 Y2 X3 Y3 …``, with the corners of a polygon.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

import yaml

from ..errors import UserError, counted, describe
from ..progress import with_progress
from .data import Data
from .detection import Picture, area_of, box_of, finish
from .folder import Folder, partners
from .names import split_of

NAMES = ('classes.txt', 'obj.names', '_darknet.labels')
TOLERANCE = 0.001  # for rounded coordinates
SHOWN = 3  # lines that are listed per error


def find(folder: Folder) -> str | None:
    """Describe the label files of a folder, or return None if there are none."""
    settings = _settings_file(folder)
    labels = _labels(folder)
    if not settings and not any(_is_label(folder.path / file) for file in labels.values()):
        return None
    return f'YOLO labels ({settings or counted(len(labels), ".txt file")})'


def without_image(folder: Folder) -> str:
    """Return the message that the label files belong to no image, or '' without such files."""
    files = [file for file in folder.with_suffix('.txt') if _is_label(folder.path / file)]
    return folder.no_image_of(files, '.txt file')


def read(folder: Folder, project: Path) -> Data:
    """Read the label files of a folder, and write COCO annotations to the project.

    Images with an empty label file have no objects. Images without a label file are left out.

    Args:
        folder: The folder.
        project: Folder to write to.

    Raises:
        UserError: If the labels cannot be used.
    """
    settings = _settings(folder)
    labels = _labels(folder)
    if not labels:
        raise UserError(
            without_image(folder)
            or f'no .txt file in {folder.path} has the name of an image ({folder.kinds()}): name '
            'the label file of images/NAME.jpg labels/NAME.txt'
        )
    folder.leave_out(
        [image for image in folder.images if image not in labels],
        'images without a label file (an empty label file means that there are no objects)',
    )
    used = set(labels.values())
    folder.leave_out(
        [
            file
            for file in folder.with_suffix('.txt')
            if file not in used and _is_label(folder.path / file)
        ],
        'label files without an image of their name',
    )
    if 'kpt_shape' in settings:
        folder.notes.append('keypoints are ignored; only their boxes are used')
    splits = _splits(folder, settings)
    reader = _Reader(folder, _names(folder, settings), 'kpt_shape' in settings)
    pictures = []
    for image, file in with_progress(list(labels.items()), 'reading labels'):
        size = folder.size(image)
        objects = list(reader.objects(file, size))
        pictures.append(Picture(image, size, objects, splits.get(image, split_of(image))))
    names = reader.require_valid()
    return finish(folder, project, pictures, names)


def _is_label(path: Path) -> bool:
    """Return whether the first line of a text file is one of a label file."""
    with open(path, errors='replace') as file:
        values = file.readline().split()
    return len(values) > 4 and all(map(_is_number, values))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _labels(folder: Folder) -> dict[Relative, Relative]:
    """Return the label file of each image."""
    files = [file for file in folder.with_suffix('.txt') if file.name not in NAMES]
    return partners(folder.images, files, anywhere=True)


def _settings_file(folder: Folder) -> Relative | None:
    """Return the file with class names and splits, such as ``data.yaml``."""
    for file in folder.with_suffix('.yaml', '.yml'):
        if re.search(rb'^(names|nc)\s*:', (folder.path / file).read_bytes(), re.MULTILINE):
            return file
    return None


def _settings(folder: Folder) -> dict[str, Any]:
    file = _settings_file(folder)
    try:
        # all values are text: in YAML, the name "no" without quotes is a boolean
        content = yaml.load((folder.path / file).read_bytes(), yaml.BaseLoader) if file else None
    except yaml.YAMLError as error:
        raise UserError(f'{file} is not YAML ({describe(error, 120)}): correct it') from error
    return content if isinstance(content, dict) else {}


def _names(folder: Folder, settings: dict[str, Any]) -> list[str] | None:
    """Return the class names, or None if there are none."""
    names = settings.get('names')
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return folder.class_names(NAMES)[0]
    if not all(str(number).isdecimal() for number in names):
        raise UserError(
            f'names in {_settings_file(folder)} has a key that is not a class index: '
            'write a list of names, or 0: NAME, 1: NAME and so on'
        )
    names = {int(number): name for number, name in names.items()}
    return [
        str(names.get(number, f'class_{number}')) for number in range(max(names, default=-1) + 1)
    ]


def _splits(folder: Folder, settings: dict[str, Any]) -> dict[Relative, str]:
    """Return the splits of images, which the settings define as folders or as lists of images."""
    splits: dict[Relative, str] = {}
    for split in ('test', 'val', 'train'):
        entries = settings.get(split) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            place = _inside(folder, str(entry))
            if place.suffix == '.txt' and place in folder.files:
                splits |= {_inside(folder, line): split for line in folder.lines(place)}
            else:
                below = (image for image in folder.images if place in image.parents)
                splits |= {image: split for image in below if place != Relative('.')}
    return splits


def _inside(folder: Folder, path: str) -> Relative:
    """Return a path in the settings relative to the folder, whatever it was relative to."""
    absolute = Path(path)
    if absolute.is_absolute() and absolute.is_relative_to(folder.path):
        absolute = absolute.relative_to(folder.path)
    return Relative(*(part for part in absolute.parts if part not in ('..', '/')))


class _Reader:
    """Reads label files, and collects their errors."""

    def __init__(self, folder: Folder, names: list[str] | None, keypoints: bool) -> None:
        self.folder, self.names, self.keypoints = folder, names, keypoints
        self.largest = -1
        self.faults: dict[str, list[str]] = defaultdict(list)

    def objects(self, file: Relative, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
        """Yield the objects of a label file."""
        text = (self.folder.path / file).read_text(encoding='utf-8-sig', errors='replace')
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            values = line.split()
            fault = self._fault(values)
            if fault:
                self.faults[fault].append(f'{file}:{number}')
                continue
            label, *coordinates = map(float, values)
            name = self.names[int(label)] if self.names else f'class_{int(label)}'
            self.largest = max(self.largest, int(label))
            points = _points(coordinates[:4] if self.keypoints else coordinates, size)
            box = box_of(points)
            each = dict(name=name, bbox=box, area=box[2] * box[3], iscrowd=0)
            if len(coordinates) > 4 and not self.keypoints:
                each |= dict(area=area_of(points), segmentation=[points])
            yield each

    def _fault(self, values: Sequence[str]) -> str | None:
        if not all(map(_is_number, values)):
            return 'values that are not numbers: use CLASS X Y WIDTH HEIGHT'
        label, *coordinates = map(float, values)
        count = len(coordinates)
        if count < 4 or (count > 4 and (count < 6 or count % 2) and not self.keypoints):
            return (
                f'{counted(count + 1, "column")}, but a box has 5 (CLASS X Y WIDTH HEIGHT), and a '
                'polygon has 7, 9, 11 or more: remove other columns, such as confidences'
            )
        if label < 0 or label != int(label):
            return 'the class is not a whole number of at least 0: correct it'
        if self.names and label >= len(self.names):
            number = len(self.names)
            return (
                f'class {int(label)}, but there {"is" if number == 1 else "are"} '
                f'{counted(number, "name")}, for classes 0 to {number - 1}: correct the class, or '
                'add its name'
            )
        used = coordinates[:4] if self.keypoints else coordinates
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in used):
            return (
                'coordinates outside the range 0 to 1: divide x and width by the width of the '
                'image, and y and height by its height'
            )
        if count == 4 and 0 in coordinates[2:]:
            return 'a box without width or height: remove it'
        return None

    def require_valid(self) -> list[str]:
        """Return the class names.

        Raises:
            UserError: If there were errors, with one line per kind.
        """
        if self.faults:
            raise UserError('\n'.join(map(_line, self.faults.items())))
        if self.names:
            return self.names
        self.folder.notes.append(
            'there is no data.yaml or classes.txt, so the classes are named class_0, class_1, …: '
            'rename them in config.py and in the categories of the annotations'
        )
        return [f'class_{number}' for number in range(self.largest + 1)]


def _line(fault: tuple[str, Sequence[str]]) -> str:
    """Return a line with an error and the first lines of files that have it."""
    text, places = fault
    more = f' and {counted(len(places) - SHOWN, "more line")}' if len(places) > SHOWN else ''
    return f'{", ".join(places[:SHOWN])}{more}: {text}'


def _points(coordinates: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Return a polygon, or two corners of a box, as x1, y1, x2, y2, … in pixels in the image."""
    if len(coordinates) == 4:
        x, y, width, height = coordinates
        coordinates = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(value, 0), 1) * size[i % 2] for i, value in enumerate(coordinates)]
