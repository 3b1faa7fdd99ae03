"""Lists the files of a folder of annotated images, and pairs images with annotation files.

All paths are relative to the folder.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

from PIL import Image

from ..errors import UserError, counted, describe
from ..files import files_below
from ..progress import with_progress
from .names import in_annotations, places

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
MOST = 256  # values of a label map


@dataclass
class Folder:
    """A folder of annotated images.

    Attributes:
        path: The folder, absolute.
        notes: Skipped files and other decisions, one line each.
        broken: JSON files that cannot be parsed, and why. Filled by ``documents``.
    """

    path: Path
    notes: list[str] = field(default_factory=list)
    broken: dict[Relative, str] = field(default_factory=dict)

    @cached_property
    def files(self) -> list[Relative]:
        """All files except hidden ones, sorted."""
        return sorted(Relative(file.relative_to(self.path)) for file in files_below(self.path))

    @cached_property
    def images(self) -> list[Relative]:
        return self.with_suffix(*IMAGES)

    @cached_property
    def documents(self) -> dict[Relative, Any]:
        """The contents of JSON files. Files that cannot be read are noted."""
        documents = {}
        for file in with_progress(self.with_suffix('.json'), 'reading .json files'):
            try:
                documents[file] = json.loads((self.path / file).read_bytes())
            except ValueError as error:
                self.broken[file] = describe(error, 80)
                self.notes.append(f'skipped {file}, which is not JSON ({self.broken[file]})')
        return documents

    def with_suffix(self, *suffixes: str) -> list[Relative]:
        return [file for file in self.files if file.suffix.lower() in suffixes]

    def kinds(self) -> str:
        """Return the numbers of files by suffix, for messages."""
        number = Counter(file.suffix.lower() or 'without suffix' for file in self.files)
        listed = ', '.join(f'{count} {suffix}' for suffix, count in number.most_common(5))
        return listed or 'no files'

    def size(self, image: Relative) -> tuple[int, int]:
        """Return the width and height of an image as training loads it: rotated by its Exif tag.

        Raises:
            UserError: If it cannot be read.
        """
        with self._opened(image) as opened:
            orientation = opened.getexif().get(0x0112, 1)
            return opened.size[::-1] if orientation > 4 else opened.size

    def is_photo(self, image: Relative) -> bool:
        """Return whether an image has more colors than a label map.

        Raises:
            UserError: If it cannot be read.
        """
        with self._opened(image) as opened:
            return len(opened.getbands()) > 1 and opened.convert('RGB').getcolors(MOST) is None

    @contextmanager
    def _opened(self, image: Relative) -> Iterator[Image.Image]:
        try:
            with Image.open(self.path / image) as opened:
                yield opened
        except Exception as error:  # Pillow may raise anything
            raise UserError(
                f'{self.path / image} cannot be read ({describe(error, 120)}): replace the image, '
                'or remove it together with its annotation'
            ) from error

    def class_names(self, files: Collection[str]) -> tuple[list[str] | None, Relative | None]:
        """Return the lines of the files with one of these names, and the first file, or None.

        Raises:
            UserError: If their lines differ, or are not in UTF-8.
        """
        found = {file: self.lines(file) for file in self.files if file.name in files}
        if not found:
            return None, None
        first = next(iter(found))
        other = next((file for file, lines in found.items() if lines != found[first]), None)
        if other:
            raise UserError(
                f'{first} and {other} of {self.path} list different classes ('
                f'{", ".join(found[first][:5])}; {", ".join(found[other][:5])}): correct the '
                'labels of one of them, and remove the file that is wrong'
            )
        return found[first], first

    def lines(self, file: Relative) -> list[str]:
        """Return the lines of a text file that are not empty.

        Raises:
            UserError: If it is not in UTF-8.
        """
        try:
            text = (self.path / file).read_text(encoding='utf-8-sig')
        except UnicodeDecodeError as error:
            raise UserError(
                f'{self.path / file} is not in UTF-8 ({describe(error, 80)}): save it as UTF-8'
            ) from error
        return [line.strip() for line in text.splitlines() if line.strip()]

    def leave_out(self, items: Sequence[Any], what: str) -> None:
        """Note that items are skipped, if there are any.

        Args:
            items: The items.
            what: Description of the items, in the plural.
        """
        if items:
            self.notes.append(f'skipped {what}: {len(items)}, for example {items[0]}')

    def no_image_of(
        self,
        files: Sequence[Relative],
        what: str,
        name: Callable[[Relative], str] = lambda file: file.stem,
        allowed: str = '',
    ) -> str:
        """Return the message that annotation files belong to no image, or '' without such files.

        Args:
            files: The annotation files.
            what: Description of one of them.
            name: Returns the part of a name that an image and its annotation file share.
            allowed: Further names that are allowed.
        """
        images = {name(image): image for image in self.images if image not in {*files}}
        if not files or not images:
            return ''
        for file in files:
            if image := images.get(name(file)):
                return (
                    f'no {what} in {self.path} is in a folder that corresponds to that of its '
                    f'image (for example {file} and {image}): put both into folders of the same '
                    'name, such as images/A and masks/A'
                )
        file, image = files[0], min(images.values())
        return (
            f'no {what} in {self.path} has the name of an image '
            f'({counted(len(files), what)}, for example {file}; {counted(len(images), "image")}, '
            f'for example {image}): give each {what} the name of its image, such as '
            f'{name(image)}{file.suffix} for {image.name}{allowed}'
        )


def partners(
    images: Iterable[Relative],
    others: Iterable[Relative],
    name: Callable[[Relative], str] = lambda file: file.stem,
    anywhere: bool = False,
) -> dict[Relative, Relative]:
    """Find the annotation file of each image by its folder and name.

    ``images/train/a.jpg`` belongs to ``labels/train/a.txt``, to ``train/labels/a.txt`` and to
    ``train/a.txt``.

    Args:
        images: The images.
        others: The annotation files.
        name: Returns the part of a name that an image and its annotation file share.
        anywhere: Whether to pair the remaining files by name alone, if the name is unique.

    Of several images with one annotation file, those in folders of annotations are left out:
    they are the label maps of the others.

    Raises:
        UserError: If several files belong to one image, or several images to one file.
    """
    images, others = list(images), list(others)
    candidates = _grouped(others, lambda file: (*places(file), name(file)))
    found = {}
    for image in images:
        files = candidates.get((*places(image), name(image)), [])
        if len(files) > 1:
            raise UserError(
                f'{files[0]} and {files[1]} both belong to {image} by their names: remove one of '
                'them, or pass a folder with one of them'
            )
        if files:
            found[image] = files[0]
    if anywhere:
        named = _grouped(set(others) - set(found.values()), name)
        left = _grouped((image for image in images if image not in found), name)
        for stem, several in left.items():
            own = _outside_annotations(several)
            if len(own) == len(named.get(stem, [])) == 1:
                found[own[0]] = named[stem][0]
    for file, several in _grouped(found, lambda image: found[image]).items():
        own = _outside_annotations(several)
        if len(own) > 1:
            raise UserError(
                f'{own[0]} and {own[1]} both belong to {file} by their names: remove one of '
                'them, or rename it together with a copy of its annotation'
            )
        for image in set(several) - set(own):
            del found[image]
    return found


def _outside_annotations(images: list[Relative]) -> list[Relative]:
    """Return the images that are not in a folder of annotations, or all if there are none."""
    return [image for image in images if not in_annotations(image)] or images


def _grouped(
    files: Iterable[Relative], key: Callable[[Relative], Hashable]
) -> dict[Hashable, list[Relative]]:
    grouped = defaultdict(list)
    for file in files:
        grouped[key(file)].append(file)
    return grouped
