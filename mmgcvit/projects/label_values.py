"""Values and colors of label maps."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, describe
from .folder import MOST, Folder

LOSSLESS = ('.bmp', '.pgm', '.png', '.ppm', '.tif', '.tiff')
GRAY = 0x010101  # a gray level v has the color v * GRAY


@dataclass
class LabelMap:
    """An image and its label map.

    Attributes:
        path: The image, relative to the folder.
        file: The label map, relative to the folder.
        size: Width and height of the image.
        colors: Its values as colors 0xRRGGBB, with their numbers of pixels.
        one_channel: Whether mmseg can load it.
        palette: Of each value its color, if it has a palette.
        split: The split that the folder assigns: 'train', 'val', 'test', or None.
    """

    path: Relative
    file: Relative
    size: tuple[int, int]
    colors: dict[int, int]
    one_channel: bool
    palette: dict[int, tuple[int, ...]]
    split: str | None

    @property
    def classes(self) -> set[int]:
        return set(self.colors)


def open_label_map(
    folder: Folder, image: Relative, file: Relative, split: str | None, as_colors: bool
) -> LabelMap:
    """Read the values of a label map.

    Args:
        folder: The folder of the data.
        image: The image, relative to the folder.
        file: The label map, relative to the folder.
        split: The split that the folder assigns to the image.
        as_colors: Whether the colors of a palette are the values, and not its indices.

    Raises:
        UserError: If it cannot be used.
    """
    if file.suffix.lower() not in LOSSLESS:
        raise UserError(
            f'the label map {folder.path / file} is a {file.suffix} file, in which compression '
            'changes the values: save label maps as .png'
        )
    size = folder.size(image)
    loaded, one_channel = load_pixels(folder.path / file, as_colors)
    with Image.open(folder.path / image) as opened:
        stored = opened.size
    if loaded.size not in (size, stored):
        raise UserError(
            f'the label map {folder.path / file} has {loaded.width}×{loaded.height} pixels, and '
            f'its image {image} has {size[0]}×{size[1]}: create label maps of the same size as '
            'their images'
        )
    # of each color its pixels, and one value or three, which depends on the mode
    colors: Any = loaded.getcolors(MOST)
    if colors is None:
        raise UserError(
            f'the label map {folder.path / file} has more than {MOST} different values: save one '
            'value or color per class, without antialiasing'
        )
    if loaded.mode == 'RGB':
        found = {red << 16 | green << 8 | blue: number for number, (red, green, blue) in colors}
    else:
        found = {value * GRAY: number for number, value in colors}
    palette = loaded.getpalette() if loaded.mode == 'P' else None
    shown = {value: tuple(palette[3 * value :][:3]) for _, value in colors} if palette else {}
    return LabelMap(image, file, size, found, one_channel, shown, split)


def load_pixels(path: Path, as_colors: bool) -> tuple[Image.Image, bool]:
    """Return a label map with values (mode L or P) or colors (RGB), and whether mmseg can load it.

    Args:
        path: The label map.
        as_colors: Whether to apply a palette. Otherwise, its indices are the values.

    Raises:
        UserError: If it cannot be read, or has values above 255.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode == 'P' and as_colors:
                return opened.convert('RGB'), False
            if opened.mode in ('L', 'P', '1'):
                return (opened.convert('L') if opened.mode == '1' else opened.copy()), True
            if len(opened.getbands()) > 1:
                return opened.convert('RGB'), False
            pixels = np.asarray(opened)
    except Exception as error:  # Pillow may raise anything
        raise UserError(
            f'the label map {path} cannot be read ({describe(error, 120)}): replace it, or remove '
            'it together with its image'
        ) from error
    if not 0 <= pixels.min() <= pixels.max() <= 255:
        raise UserError(
            f'the label map {path} has values from {pixels.min()} to {pixels.max()}: use 0 to 255'
        )
    return Image.fromarray(pixels.astype(np.uint8)), True


def require_equal_palettes(maps: Sequence[LabelMap]) -> None:
    """Raise a UserError if a color has different values, for which it cannot be a class."""
    first: dict[int, tuple[tuple[int, ...], LabelMap]] = {}
    values: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for each in maps:
        for value, color in each.palette.items():
            values[color].add(value)
    for each in maps:
        for value, color in each.palette.items():
            other, where = first.setdefault(value, (color, each))
            # colors of palettes that differ may be arbitrary
            if other != color and max(len(values[color]), len(values[other])) > 1:
                raise UserError(
                    f'the value {value} has the color {bytes(other).hex()} in {where.file} and '
                    f'{bytes(color).hex()} in {each.file}, of which another value has one too: '
                    'save the label maps with one palette, or as RGB'
                )


def require_one_kind(maps: Sequence[LabelMap]) -> None:
    """Raise a UserError if some label maps have gray levels and others colors."""
    first: dict[str, LabelMap] = {}
    for each in maps:
        if any(color % GRAY for color in each.colors):
            kind = 'colors'
        elif not each.one_channel or set(each.colors) == {0}:  # the same in all kinds
            continue
        elif any(color != (value,) * 3 for value, color in each.palette.items()):
            kind = 'the indices of a palette'
        else:
            kind = 'gray levels'
        first.setdefault(kind, each)
    if len(first) > 1:
        (kind, one), (other_kind, other), *_ = first.items()
        raise UserError(
            f'{one.file} contains {kind}, and {other.file} {other_kind}, so that a class may have '
            'several values: save all label maps in the same way, for example as gray levels'
        )
