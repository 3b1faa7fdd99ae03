"""Annotation files in COCO's format."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

from ..errors import UserError
from .data import Data, Split
from .detection import Picture, area_of, box_of, finish
from .folder import Folder
from .names import split_in_name, split_of


def find(folder: Folder) -> str | None:
    """Describe the annotation files of a folder, or return None if there are none."""
    files = _documents(folder)
    return f'COCO annotations ({", ".join(map(str, files))})' if files else None


def read(folder: Folder, project: Path) -> Data:
    """Read the annotation files of a folder.

    The files of a training and a validation split are used in place if their entries are complete
    and the images of each split are in one folder. Otherwise, corrected copies are written to the
    project.

    Args:
        folder: The folder.
        project: Folder to write to.

    Raises:
        UserError: If the annotations cannot be used.
    """
    documents = _documents(folder)
    for file, reason in folder.broken.items():
        # it may be the annotation file of a split
        raise UserError(
            f'{folder.path / file} is not JSON ({reason}): replace the file by a complete copy, or '
            'remove it if it is not needed'
        )
    readers = [
        _Reader(folder, file, split, documents[file]) for split, file in _choose(folder).items()
    ]
    same = len({tuple(reader.names) for reader in readers}) == 1
    if not same:
        _require_same_classes(readers)
    in_place = {
        str(reader.split): split for reader in readers if (split := reader.in_place()) is not None
    }
    usable = same and len(in_place) == 2
    pictures = [picture for reader in readers for picture in reader.pictures]
    return finish(folder, project, pictures, readers[0].names, in_place if usable else None)


def _documents(folder: Folder) -> dict[Relative, dict]:
    """Return the files with objects; not, for example, those with captions.

    A split whose images have no objects belongs to them.
    """
    files = {
        file: content
        for file, content in folder.documents.items()
        if isinstance(content, dict)
        and isinstance(content.get('images'), list)
        and isinstance(content.get('annotations'), list)
        and all(_has(each, 'category_id') for each in content['annotations'][:1])
    }
    return files if any(content['annotations'] for content in files.values()) else {}


def _choose(folder: Folder) -> dict[str | None, Relative]:
    """Return the file to read for each split, the training split first."""
    files: dict[str | None, list[Relative]] = defaultdict(list)
    for file in _documents(folder):
        files[split_in_name(file)].append(file)
    folder.leave_out(
        files.pop('test', []),
        'annotation files of a test split (set test_dataloader and test_evaluator to use them)',
    )
    if not files:
        raise UserError(
            f'{folder.path} only has annotations of a test split: add annotations of training '
            'images, or rename the file'
        )
    # without a split for training, a file that names none contains it
    first = next(split for split in ('train', None, 'val') if split in files)
    chosen = [first, 'val'] if first == 'train' and 'val' in files else [first]
    result = {}
    for split in chosen:
        several = files.pop(split)
        # beside keypoints and captions of the same images
        instances = [file for file in several if file.name.startswith('instances')] or several
        if len(instances) > 1:
            raise UserError(
                f'{instances[0]} and {instances[1]} of {folder.path} both contain '
                f'{"annotations" if split is None else f"the {split} split"}: merge them, or name '
                'them after their splits, such as train.json and val.json'
            )
        result[split] = instances[0]
        folder.leave_out(
            [file for file in several if file not in instances], 'annotation files beside instances'
        )
    folder.leave_out(
        [file for rest in files.values() for file in rest],
        f'annotation files other than {" and ".join(map(str, result.values()))}',
    )
    return result


class _Reader:
    """Reads an annotation file, and completes its entries.

    Attributes:
        split: Split in the name of the file, if any.
        names: Class names, in the order of the file.
        pictures: The images that exist, with their objects.
    """

    def __init__(
        self, folder: Folder, file: Relative, split: str | None, content: Mapping[str, Any]
    ) -> None:
        self.folder, self.file, self.split = folder, file, split
        with open(folder.path / file, 'rb') as opened:
            encoding = json.detect_encoding(opened.read(4))
        # whether an entry was completed or left out, or pycocotools cannot read the file
        self.changed = encoding != 'utf-8'
        # folders to which file_name is relative; None if it is relative to no folder
        self.prefixes: set[Relative | None] = set()
        categories = content.get('categories')
        if not categories or not all(
            _has_ids(each, 'id') and 'name' in each for each in categories
        ):
            raise UserError(
                f'{file} has no list of categories with id and name: export it again with the '
                'names of the classes'
            )
        self.categories = {each['id']: str(each['name']) for each in categories}
        # several categories may have one name, such as a class and its supercategory
        self.names = list(dict.fromkeys(self.categories.values()))
        self.changed = self.changed or len(self.names) < len(categories)
        self.objects = self._read_objects(content['annotations'])
        self.pictures = self._read_images(content['images'])

    def in_place(self) -> Split | None:
        """Return the split if the file can be used in place, otherwise None."""
        if self.changed or len(self.prefixes) != 1 or None in self.prefixes:
            return None
        prefix = dict(img=f'{next(iter(self.prefixes))}/')
        return Split(len(self.pictures), dict(ann_file=str(self.file), data_prefix=prefix))

    def _read_images(self, entries: Sequence[Any]) -> list[Picture]:
        objects = dict(self.objects)
        by_name = defaultdict(list)
        for image in self.folder.images:
            by_name[image.name].append(image)
        ids, pictures, missing = set(), [], []
        paths: dict[Relative, Any] = {}
        for number, entry in enumerate(entries):
            if not _has_ids(entry, 'id') or 'file_name' not in entry or entry['id'] in ids:
                raise UserError(
                    f"entry {number} of 'images' in {self.file} has no file_name or no unique id: "
                    'export the file again'
                )
            ids.add(entry['id'])
            path = self._find(str(entry['file_name']), by_name)
            if path is None:
                missing.append(repr(entry['file_name']))
                continue
            if path in paths:
                raise UserError(
                    f'{self.file} lists {path} twice, as the images {paths[path]!r} and '
                    f'{entry["id"]!r}: merge their annotations under one id'
                )
            paths[path] = entry['id']
            size = entry.get('width'), entry.get('height')
            if not all(map(_is_number, size)):
                size, self.changed = self.folder.size(path), True
            split = split_of(path) if self.split is None else self.split
            pictures.append(Picture(path, size, objects.get(entry['id'], []), split))
        if not pictures:
            raise UserError(
                f'none of the {len(missing)} images listed in {self.file} exists in '
                f'{self.folder.path}, for example {missing[0]}: pass a folder that contains the '
                'images and the annotations, or correct file_name'
            )
        lost = [f'image_id {image!r}' for image in objects if image not in ids]
        self._leave_out(missing, 'images whose file does not exist')
        self._leave_out(lost, 'annotations of images that are not listed')
        return pictures

    def _find(self, name: str, by_name: Mapping[str, list[Relative]]) -> Relative | None:
        """Find an image by its ``file_name``, which may be relative to any folder."""
        own = Relative(name.replace('\\', '/')).parts[::-1]
        candidates = by_name.get(own[0], []) if own else []
        if not candidates:
            return None
        agreeing = {path: _equal_parts(path.parts[::-1], own) for path in candidates}
        found = [path for path in candidates if agreeing[path] == max(agreeing.values())]
        if len(found) > 1:
            beside = [path for path in found if path.parent == self.file.parent]
            of_split = [path for path in found if self.split and split_of(path) == self.split]
            found = beside or of_split or found
        if len(found) > 1:
            raise UserError(
                f'{name!r} in {self.file} is ambiguous: it may be {found[0]} or {found[1]}: use '
                f'paths relative to {self.folder.path}'
            )
        path, number = found[0], agreeing[found[0]]
        complete = number == len(own) and '\\' not in name
        self.prefixes.add(Relative(*path.parts[:-number]) if complete else None)
        return path

    def _read_objects(self, entries: Sequence[Any]) -> dict[Any, list[dict]]:
        """Return the objects of each image by its id."""
        objects: dict[Any, list[dict]] = defaultdict(list)
        unknown, without_box, ids = [], [], set()
        for entry in entries:
            shown = f'{entry}'[:80]
            if (
                not _has_ids(entry, 'image_id', 'category_id')
                or entry['category_id'] not in self.categories
            ):
                unknown.append(shown)
                continue
            polygons = entry.get('segmentation')
            polygons = polygons if _are_polygons(polygons) else []
            points = [value for polygon in polygons for value in polygon]
            box = entry.get('bbox') or (box_of(points) if points else None)
            if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
                without_box.append(shown)
                continue
            each = dict(name=self.categories[entry['category_id']], bbox=box)
            # some programs write null
            entry = {key: value for key, value in entry.items() if value is not None}
            each['iscrowd'] = entry.get('iscrowd', 0)
            area = sum(map(area_of, polygons)) if polygons else box[2] * box[3]
            each['area'] = entry.get('area', area)
            if entry.get('segmentation'):
                each['segmentation'] = entry['segmentation']
            own = entry.get('id')
            valid = isinstance(own, int) and own > 0 and own not in ids  # for COCO's metric
            self.changed = self.changed or not (valid and _has(entry, 'bbox', 'area', 'iscrowd'))
            if valid:
                ids.add(own)
            objects[entry['image_id']].append(each)
        self._leave_out(unknown, 'annotations whose category_id is not an id of categories')
        self._leave_out(without_box, 'annotations without a bbox of four numbers')
        return objects

    def _leave_out(self, items: Sequence[str], what: str) -> None:
        self.changed = self.changed or bool(items)
        self.folder.leave_out(items, f'{what} in {self.file}')


def _has(entry: Any, *keys: str) -> bool:
    return isinstance(entry, Mapping) and all(key in entry for key in keys)


def _has_ids(entry: Any, *keys: str) -> bool:
    """Return whether an entry has ids that may be looked up; a list, for example, is not one."""
    return _has(entry, *keys) and all(isinstance(entry[key], int | float | str) for key in keys)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _are_polygons(mask: Any) -> bool:
    return (
        isinstance(mask, list)
        and bool(mask)
        and all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(map(_is_number, polygon))
            for polygon in mask
        )
    )


def _equal_parts(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the common prefix of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _require_same_classes(readers: Sequence[_Reader]) -> None:
    """Raise a UserError if the validation has objects of a class that the training lacks."""
    train, val = readers
    used = {each['name'] for objects in val.objects.values() for each in objects}
    unknown = sorted(used - set(train.names))
    if unknown:
        raise UserError(
            f'{val.file} has objects of {unknown[0]!r}, which is not a category of {train.file} '
            f'({", ".join(train.names)}): use the same categories in both files'
        )
