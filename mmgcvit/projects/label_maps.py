"""Images and label maps: one value or color per class."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, describe
from ..files import write_atomically
from ..progress import with_progress
from ..task import SEGMENTATION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import Folder, in_annotations, partners
from .splits import divide, split_of

LOSSLESS = ('.bmp', '.pgm', '.png', '.ppm', '.tif', '.tiff')
NAMES = ('classes.txt', 'labels.txt', 'class_names.txt')
CONVERTED = 'label_maps'  # folder of a project
IGNORED = 255
GRAY = 0x010101  # a gray level v has the color v * GRAY
MOST = 256  # values
# a label map with more values, of which 0 and 255 cover more than this part, has soft edges
SOFT_VALUES, SOFT_BINARY = 16, 0.9


@dataclass
class _Map:
    """An image and its label map.

    Attributes:
        path: The image, relative to the folder.
        file: The label map, relative to the folder.
        size: Width and height of the image.
        colors: Its values as colors 0xRRGGBB, with their numbers of pixels.
        one_channel: Whether mmseg can load it.
        palette: Of each value its color, if it has a palette.
    """

    path: Relative
    file: Relative
    size: tuple[int, int]
    colors: dict[int, int]
    one_channel: bool
    palette: dict[int, tuple[int, ...]]

    @property
    def split(self) -> str | None:
        return split_of(self.path)

    @property
    def classes(self) -> set[int]:
        return set(self.colors)


def find(folder: Folder) -> str | None:
    """Describe the label maps of a folder, or return None if there are none."""
    pairs = _pairs(folder)
    if not pairs:
        return None
    image, file = next(iter(pairs.items()))
    return f'label maps ({len(pairs)}, for example {file} of {image})'


def read(folder: Folder, project: Path) -> Data:
    """Read the label maps of a folder.

    Label maps with the values 0, 1, 2, … (and 255, which is ignored) are used in place if mmseg can
    derive their paths from those of the images. Otherwise, they are converted into the project.

    Args:
        folder: The folder.
        project: Folder to write to.

    Raises:
        UserError: If the label maps cannot be used.
    """
    pairs = _pairs(folder)
    annotations = set(filter(_is_annotation, folder.images))
    folder.leave_out(
        [file for file in folder.images if file not in annotations and file not in pairs],
        'images without a label map',
    )
    folder.leave_out(
        sorted(annotations - set(pairs.values())),
        'label maps without an image of the same name',
    )
    progress = with_progress(list(pairs.items()), 'reading label maps')
    maps = [_open(folder, image, file) for image, file in progress]
    _require_equal_palettes(maps)
    names, labels = _classes(folder, sum((Counter(each.colors) for each in maps), Counter()))
    train, val = divide(maps, folder)
    layouts = [_layout(part) for part in (train, val)]
    in_place = (
        all(layouts)
        and all(color == label * GRAY for color, label in labels.items())
        and all(each.one_channel for each in maps)
    )
    if not in_place:
        for each in with_progress([*train, *val], 'converting label maps'):
            _convert(folder, project, each, labels)
        layouts = [None, None]
    return Data(
        SEGMENTATION,
        tuple(names),
        _write_list(project, 'train', train, layouts[0]),
        _write_list(project, 'val', val, layouts[1]),
        typical_size([each.size for each in maps]),
    )


def _is_annotation(file: Relative) -> bool:
    """Return whether an image file is a label map, by its folder or its name."""
    return in_annotations(file) or _name_of_image(file) != file.stem


def _name_of_image(file: Relative) -> str:
    """Return the name of a label map's image: ``a`` for ``a_mask``, ``a-labels`` or ``a_gt``."""
    return re.sub(r'(?<=.)[-_. ](masks?|labels?|seg|gt|annotations?)$', '', file.stem, flags=re.I)


def _pairs(folder: Folder) -> dict[Relative, Relative]:
    """Return the label map of each image."""
    maps = [file for file in folder.images if _is_annotation(file)]
    images = [file for file in folder.images if not _is_annotation(file)]
    return partners(images, maps, _name_of_image)


def _open(folder: Folder, image: Relative, file: Relative) -> _Map:
    if file.suffix.lower() not in LOSSLESS:
        raise UserError(
            f'the label map {folder.path / file} is a {file.suffix} file, in which compression '
            'changes the values: save label maps as .png'
        )
    size = folder.size(image)
    loaded, one_channel = _load(folder.path / file)
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
    return _Map(image, file, size, found, one_channel, shown)


def _load(path: Path) -> tuple[Image.Image, bool]:
    """Return a label map with values (mode L or P) or colors (RGB), and whether mmseg can load it.

    A palette is not applied: its indices are the values.
    """
    try:
        with Image.open(path) as opened:
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


def _classes(folder: Folder, colors: Mapping[int, int]) -> tuple[list[str], dict[int, int]]:
    """Return the class names, and the label of each color.

    Raises:
        UserError: If there is only one class, if the number of names is wrong, or if the values
            look like soft edges.
    """
    gray = all(color % GRAY == 0 for color in colors)
    names, file = folder.class_names(NAMES)
    labels = {}
    if gray and not names:
        _require_sharp_edges(folder, colors)
    # 0 and 255 alone are two classes
    if gray and IGNORED * GRAY in colors and len(colors) > 2 and len(names or ()) != len(colors):
        labels[IGNORED * GRAY] = IGNORED
        folder.notes.append(
            f'pixels with the value {IGNORED} are ignored: if they are a class, add classes.txt '
            'with one name per value and line'
        )
    used = sorted(colors.keys() - labels.keys())
    shown = [str(color // GRAY) if gray else f'{color:06x}' for color in used]
    if len(used) < 2:
        raise UserError(
            f'all pixels of the label maps of {folder.path} have the value {shown[0]}: a segmentor '
            'needs at least two classes, one of which may be the background'
        )
    if gray and names and used[-1] // GRAY < len(names):
        return names, labels | {color: color // GRAY for color in used}
    if names is None and shown == ['0', '255']:
        names = ['background', 'foreground']
    elif names is None:
        names = [f'{"class" if gray else "color"}_{text}' for text in shown]
        folder.notes.append(
            f'the classes are named after the {"values" if gray else "colors"} of the label maps: '
            'rename them in config.py, or add classes.txt with one name per value and line'
        )
    if len(names) != len(used):
        raise UserError(
            f'{file} has {len(names)} names, but the label maps have {len(used)} values '
            f'({", ".join(shown)}): write one name per line, in this order'
        )
    return names, labels | {color: number for number, color in enumerate(used)}


def _require_equal_palettes(maps: Sequence[_Map]) -> None:
    """Raise a UserError if a color has different values, for which it cannot be a class."""
    first: dict[int, tuple[tuple[int, ...], _Map]] = {}
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


def _require_sharp_edges(folder: Folder, colors: Mapping[int, int]) -> None:
    """Raise a UserError if the values are those of binary masks with antialiased edges."""
    binary = sum(colors.get(value * GRAY, 0) for value in (0, 255)) / sum(colors.values())
    if len(colors) > SOFT_VALUES and binary > SOFT_BINARY:
        raise UserError(
            f'the label maps of {folder.path} have {len(colors)} values, but {binary:.0%} of the '
            'pixels are 0 or 255: if these are binary masks with soft edges, save them without '
            'antialiasing; otherwise, add classes.txt with one name per value and line'
        )


def _layout(maps: Sequence[_Map]) -> dict[str, str] | None:
    """Return dataset settings with which mmseg finds all files, or None."""
    found = {tuple(_settings(each).items()) for each in maps}
    return dict(found.pop()) if len(found) == 1 else None


def _settings(pair: _Map) -> dict[str, str]:
    """Return where the paths of an image and its label map differ."""
    if not pair.file.name.startswith(pair.path.stem):
        return {}
    images, maps = pair.path.parts[:-1], pair.file.parts[:-1]
    while images and maps and images[-1] == maps[-1]:  # folders within those of the splits
        images, maps = images[:-1], maps[:-1]
    return dict(
        img_path='/'.join(images),
        seg_map_path='/'.join(maps),
        img_suffix=pair.path.suffix,
        seg_map_suffix=pair.file.name.removeprefix(pair.path.stem),
    )


def _write_list(
    project: Path, split: str, maps: Sequence[_Map], layout: Mapping[str, str] | None
) -> Split:
    """Write the list of the images of a split, and return the split."""
    begin, ending = (layout['img_path'], layout['img_suffix']) if layout else ('', '')
    names = (each.path.relative_to(begin).as_posix().removesuffix(ending) for each in maps)
    file = f'{ANNOTATIONS}/{split}.txt'
    write_atomically(project / file, ''.join(f'{name}\n' for name in names).encode())
    settings: dict[str, Any] = dict(ann_file=in_project(file))
    settings['data_prefix'] = dict(img_path=begin, seg_map_path=in_project(CONVERTED))
    settings['img_suffix'] = ending
    if layout:
        settings['data_prefix']['seg_map_path'] = layout['seg_map_path']
        settings['seg_map_suffix'] = layout['seg_map_suffix']
    return Split(len(maps), settings)


def _convert(folder: Folder, project: Path, pair: _Map, labels: Mapping[int, int]) -> None:
    """Write a label map with the values of ``labels`` to the project."""
    loaded, _ = _load(folder.path / pair.file)
    pixels = np.asarray(loaded).astype(np.int64)
    if pixels.ndim == 3:
        colors = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    else:
        colors = pixels * GRAY
    converted = np.zeros(colors.shape, np.uint8)
    for color in pair.colors:
        converted[colors == color] = labels[color]
    path = project / CONVERTED / f'{pair.path}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(converted).save(path)
