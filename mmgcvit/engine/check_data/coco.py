"""Detection datasets in COCO's format."""

from collections import Counter
from pathlib import Path
from typing import Any

from .coco_annotations import check_annotations, first_without
from .coco_file import is_large, read_coco
from .files import find_missing, has_root, is_remote, open_images, spread
from .report import Findings

IMAGE_KEYS = ('id', 'file_name', 'height', 'width')


def check_coco(dataset: Any, option: str, samples: int | None, fast: bool, masks: bool) -> Findings:
    """Check a CocoDataset that was built with ``lazy_init=True``.

    Args:
        dataset: mmdet's CocoDataset or a subclass with its annotation format.
        option: Its place in the config, for remedies.
        samples: How many images are opened, None for all.
        fast: Whether large annotation files are read in part.
        masks: Whether the model needs every instance's mask.
    """
    found = Findings(classes=_class_names(dataset.metainfo.get('classes')))
    if is_remote(dataset):
        found.notes.append('not checked, its files are in another storage')
        return found
    if not has_root(dataset, option, found):
        return found
    path = Path(dataset.ann_file)
    if not path.is_file():
        found.stop(
            f'the annotation file {path} does not exist: put it there, or say where it is with '
            f'--cfg-options {option}.ann_file=PATH (from data_root)'
        )
        return found
    in_part = fast and is_large(path)
    content = _read(path, in_part, found)
    if content is None:
        return found
    _check_classes(found.classes, content['categories'], dataset.ann_file, option, found)
    images = content['images']
    found.images = None if in_part else len(images)
    if not images:
        found.stop(f'{dataset.ann_file} lists no images: export it again with its images')
        return found
    _check_images(dataset, images, option, samples, fast, found)
    if not in_part:
        check_annotations(dataset, content, masks, found)
    return found


def _class_names(classes: Any) -> tuple[str, ...] | None:
    return tuple(classes) if isinstance(classes, list | tuple) else None


def _read(path: Path, in_part: bool, found: Findings) -> dict | None:
    try:
        content = read_coco(path, in_part)
    except ValueError as error:
        found.stop(
            f"{path} is not JSON in COCO's format ({error}): get it again, or export it as COCO"
        )
        return None
    for key in ('images', 'categories'):
        entries = content.get(key)
        wanted = IMAGE_KEYS if key == 'images' else ('id', 'name')
        if not isinstance(entries, list):
            found.stop(f'{path} has no list {key!r}: export it in COCO\'s format ("instances")')
            return None
        bad = first_without(entries, wanted)
        if bad is not None:
            found.stop(
                f'{path}: {bad} of {key!r} lacks one of {", ".join(wanted)}, or has no number '
                'there: export it again'
            )
            return None
    return content


def _check_classes(
    classes: tuple[str, ...] | None,
    categories: list[dict],
    path: str,
    option: str,
    found: Findings,
) -> None:
    # mmdet numbers the labels in the order of the file, whatever order the config has
    names = [category['name'] for category in categories]
    if classes is None:
        found.stop(
            f'metainfo.classes is no tuple of names: set {option}.metainfo.classes to '
            f'{_shown(names)}; a single one is written with a comma, as ("cat",)'
        )
        return
    missing = [name for name in classes if name not in names]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if missing:
        found.stop(
            f'{len(missing)} of the {len(classes)} classes of the config are no categories of '
            f'{path}, as {missing[0]!r}: its {len(names)} categories are {_shown(names)}; set '
            f"{option}.metainfo.classes to them and the heads' num_classes to their number"
        )
    elif repeated:
        found.stop(f'{path} has several categories of the name {repeated[0]!r}: rename them')
    elif [name for name in names if name in classes] != list(classes):
        found.stop(
            f'the classes of the config are in another order than the categories of {path}, so '
            'that predictions would be given wrong names: set '
            f'{option}.metainfo.classes to {_shown([n for n in names if n in classes])}'
        )
    elif len(names) > len(classes):
        unused = [name for name in names if name not in classes]
        found.notes.append(f'{len(unused)} categories of {path} are not used: {_shown(unused)}')


def _shown(names: list[str]) -> str:
    shown = ', '.join(repr(name) for name in names[:10])
    return f'({shown}, … {len(names)} in all)' if len(names) > 10 else f'({shown})'


def _check_images(
    dataset: Any,
    images: list[dict],
    option: str,
    samples: int | None,
    fast: bool,
    found: Findings,
) -> None:
    folder = Path(dataset.data_prefix.get('img', ''))
    if not folder.is_dir():
        found.stop(
            f'the folder of images {folder} does not exist: put them there, or say where they are '
            f'with --cfg-options {option}.data_prefix.img=PATH (from data_root)'
        )
        return
    paths = [str(folder / image['file_name']) for image in images]
    remedy = f'put them there, or change {option}.data_prefix.img'
    find_missing(paths, 'images', remedy, fast, found)
    opened = spread(len(images), samples)
    differ = []
    for number, size in open_images([paths[i] for i in opened], found):
        image = images[opened[number]]
        if size != (image['height'], image['width']):
            differ.append(
                f'{paths[opened[number]]} is {size[1]}×{size[0]}, its entry says '
                f'{image["width"]}×{image["height"]}'
            )
    if differ:
        found.stop(
            f'{len(differ)} images have another size (width × height, turned as Exif says) than '
            f'in {dataset.ann_file}: {differ[0]}; correct the entries and their boxes'
        )
