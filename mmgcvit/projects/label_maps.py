"""Images and label maps: one value or color per class."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pathlib import PurePosixPath as Relative
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_atomically
from ..progress import with_progress
from ..task import SEGMENTATION
from .data import ANNOTATIONS, Data, Split, in_project, typical_size
from .folder import Folder, partners
from .label_names import classes_of, named_values
from .label_values import (
    GRAY,
    LabelMap,
    load_pixels,
    open_label_map,
    require_equal_palettes,
    require_one_kind,
)
from .names import in_annotations, split_of
from .splits import divide, listed_splits

CONVERTED = 'label_maps'  # folder of a project
# files of Cityscapes beside its label maps
OTHERS = re.compile(r'_gt(Fine|Coarse)_(color|instance(Train)?Ids)$')
# ends of the names of label maps
ENDINGS = re.compile(
    r'(?<=.)([-_. ](masks?|labels?|seg|gt|annotations?)|_gt(Fine|Coarse)_label(Train)?Ids)$', re.I
)


def find(folder: Folder) -> str | None:
    """Describe the label maps of a folder, or return None if there are none."""
    pairs = _pairs(folder)
    if not pairs:
        return None
    image, file = next(iter(pairs.items()))
    return f'label maps ({len(pairs)}, for example {file} of {image})'


def without_image(folder: Folder) -> str:
    """Return the message that the label maps belong to no image, or '' without label maps."""
    allowed = '. The endings _mask, _label, _seg, _gt and _annotation are allowed, too'
    return folder.no_image_of(_label_maps(folder), 'label map', _name_of_image, allowed)


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
    maps = _label_maps(folder)
    used = set(pairs.values())
    folder.leave_out(
        [file for file in maps if file not in used],
        'label maps without an image of their name',
    )
    folder.leave_out(
        sorted(annotations - used - set(maps)),
        'other images in folders of annotations',
    )
    progress = with_progress(list(pairs.items()), 'reading label maps')
    splits = listed_splits(folder, 'Segmentation')
    named, as_colors = named_values(folder)
    opened = [
        open_label_map(folder, image, file, splits.get(image.stem, split_of(image)), as_colors)
        for image, file in progress
    ]
    require_one_kind(opened)
    require_equal_palettes(opened)
    names, labels = classes_of(folder, opened, named)
    train, val = divide(opened, folder)
    layouts = [_layout(part) for part in (train, val)]
    in_place = (
        all(layouts)
        and all(color == label * GRAY for color, label in labels.items())
        and all(each.one_channel for each in opened)
    )
    if not in_place:
        for each in with_progress([*train, *val], 'converting label maps'):
            pixels, _ = load_pixels(folder.path / each.file, as_colors)
            _convert(pixels, project, each, labels)
        layouts = [None, None]
    return Data(
        SEGMENTATION,
        tuple(names),
        _write_list(project, 'train', train, layouts[0]),
        _write_list(project, 'val', val, layouts[1]),
        typical_size([each.size for each in opened]),
    )


def _is_annotation(file: Relative) -> bool:
    """Return whether an image file is a label map, by its folder or its name."""
    return in_annotations(file) or bool(ENDINGS.search(file.stem))


def _name_of_image(file: Relative) -> str:
    """Return what an image and its label map share: ``a`` for ``a_mask`` or ``a-gt``."""
    return ENDINGS.sub('', file.stem.removesuffix('_leftImg8bit'))


def _label_maps(folder: Folder) -> list[Relative]:
    """Return the label maps of classes, also those without an image."""
    maps = [file for file in folder.images if _is_annotation(file)]
    # of Pascal VOC: maps of objects, not of classes
    maps = [file for file in maps if file.parent.name != 'SegmentationObject']
    maps = [file for file in maps if not OTHERS.search(file.stem)]
    if any(file.stem.endswith('_labelTrainIds') for file in maps):
        # the labels of Cityscapes' benchmark, beside those of all its classes
        maps = [file for file in maps if not file.stem.endswith('_labelIds')]
    return maps


def _pairs(folder: Folder) -> dict[Relative, Relative]:
    """Return the label map of each image."""
    images = [file for file in folder.images if not _is_annotation(file)]
    return partners(images, _label_maps(folder), _name_of_image)


def _layout(maps: Sequence[LabelMap]) -> dict[str, str] | None:
    """Return dataset settings with which mmseg finds all files, or None."""
    found = {tuple(_settings(each).items()) for each in maps}
    return dict(found.pop()) if len(found) == 1 else None


def _settings(pair: LabelMap) -> dict[str, str]:
    """Return where the paths of an image and its label map differ."""
    name = _name_of_image(pair.path)
    if not pair.file.name.startswith(name):
        return {}
    images, maps = pair.path.parts[:-1], pair.file.parts[:-1]
    while images and maps and images[-1] == maps[-1]:  # folders within those of the splits
        images, maps = images[:-1], maps[:-1]
    return dict(
        img_path='/'.join(images),
        seg_map_path='/'.join(maps),
        img_suffix=pair.path.name.removeprefix(name),
        seg_map_suffix=pair.file.name.removeprefix(name),
    )


def _write_list(
    project: Path, split: str, maps: Sequence[LabelMap], layout: Mapping[str, str] | None
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


def _convert(loaded: Image.Image, project: Path, pair: LabelMap, labels: Mapping[int, int]) -> None:
    """Write a label map with the values of ``labels`` to the project."""
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
