"""Segmentation datasets: folders of images and of label maps.

H, W: height and width of an image in pixels.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS
from PIL import Image

from .files import find_missing, has_root, is_remote, open_images, spread
from .report import Findings


def check_segmentation(
    dataset: Any, option: str, pipeline: list[dict], samples: int | None, fast: bool
) -> Findings:
    """Check a BaseSegDataset that was built with ``lazy_init=True``.

    Args:
        dataset: mmseg's BaseSegDataset or a subclass.
        option: Its place in the config, for remedies.
        pipeline: Its transforms, of which LoadAnnotations is run.
        samples: How many images and label maps are opened, None for all.
        fast: Whether of many files only some are looked for.
    """
    classes = dataset.metainfo.get('classes')
    found = Findings(unit='pixels')
    if not isinstance(classes, list | tuple):
        found.stop(
            f'metainfo.classes is no tuple of names: set {option}.metainfo.classes to the names of '
            'the label values 0, 1, …; a single one is written with a comma, as ("road",)'
        )
    else:
        found.classes = tuple(classes)
    if is_remote(dataset):
        found.notes.append('not checked, its files are in another storage')
        return found
    if not has_root(dataset, option, found) or not _has_folders(dataset, option, found):
        return found
    entries = dataset.load_data_list()
    found.images = len(entries)
    if not entries:
        found.stop(
            f'there are no images *{dataset.img_suffix} below {dataset.data_prefix["img_path"]}: '
            f'put them there, or set {option}.img_suffix'
        )
        return found
    images = [entry['img_path'] for entry in entries]
    find_missing(images, 'images', f'put them there, or change {option}.ann_file', fast, found)
    load = next((step for step in pipeline if _is_load(step)), None)
    labelled = load is not None and 'seg_map_path' in entries[0]
    if labelled:
        find_missing(
            [entry['seg_map_path'] for entry in entries],
            'label maps',
            f'put them there, or set {option}.seg_map_suffix and data_prefix.seg_map_path',
            fast,
            found,
        )
    opened = [entries[i] for i in spread(len(entries), samples)]
    sizes = dict(open_images([entry['img_path'] for entry in opened], found))
    if labelled and found.classes is not None:
        _check_labels(dataset, option, load, opened, sizes, found)
    return found


def _is_load(step: dict) -> bool:
    kind = step.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2] == 'LoadAnnotations'


def _has_folders(dataset: Any, option: str, found: Findings) -> bool:
    there = True
    for key in ('img_path', 'seg_map_path'):
        folder = dataset.data_prefix.get(key)
        if folder is not None and not Path(folder).is_dir():
            found.stop(
                f'the folder {folder} does not exist: put the files there, or say where they are '
                f'with --cfg-options {option}.data_prefix.{key}=PATH (from data_root)'
            )
            there = False
    if dataset.ann_file and not Path(dataset.ann_file).exists():
        found.stop(
            f'the list of images {dataset.ann_file} does not exist: put it there, or change '
            f'{option}.ann_file'
        )
        there = False
    return there


def _check_labels(
    dataset: Any,
    option: str,
    load: dict,
    entries: list[dict],
    sizes: dict[int, tuple[int, int]],
    found: Findings,
) -> None:
    """Read label maps as the training does and count their pixels."""
    classes, ignored = found.classes, dataset.ignore_index
    transform = TRANSFORMS.build(load)
    pixels = np.zeros(256, np.int64)
    found.annotated = 0
    # a kind of fault → files that have it
    faults: dict[str, list[str]] = {}

    def fault(kind: str, path: str) -> None:
        faults.setdefault(kind, []).append(path)

    for number, entry in enumerate(entries):
        path = entry['seg_map_path']
        if not os.path.isfile(path):
            continue  # reported as missing
        raw = _read_raw(path)
        if raw is None:
            fault('cannot be read as an image: get them again', path)
            continue
        if raw.ndim != 2:
            fault(
                f'hold colours ({raw.shape[-1]} channels), not one label value a pixel: convert '
                'them to single-channel images of label values',
                path,
            )
            continue
        if raw.max() > 255:
            fault(f'have label values above 255, as {raw.max()}: use 0 to 255', path)
            continue
        try:
            labels = transform(dict(entry, seg_fields=[]))['gt_seg_map']
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            fault(f'cannot be loaded ({error}): correct LoadAnnotations in {option}.pipeline', path)
            break  # a setting, the same for all
        if number in sizes and labels.shape != sizes[number]:
            fault("have another size than their images: make the label map's size the same", path)
        counts = np.bincount(labels.ravel(), minlength=256)
        pixels += counts
        found.annotated += bool(counts[: len(classes)].any())
        beyond = [v for v in np.flatnonzero(counts) if v >= len(classes) and v != ignored]
        if beyond:
            reduced = ' after label 0 became ignored' if dataset.reduce_zero_label else ''
            fault(
                f'have label values of no class{reduced}, as {beyond[-1]}, where {len(classes)} '
                f'classes have 0 to {len(classes) - 1} and {ignored} is ignored: correct '
                f'{option}.metainfo.classes, {option}.reduce_zero_label or the label maps',
                path,
            )
    for kind, paths in faults.items():
        found.stop(f'{len(paths)} of {len(entries)} label maps, as {paths[0]}, {kind}')
    found.counts = {name: int(pixels[i]) for i, name in enumerate(classes)}
    if found.annotated == 0 and not found.problems:
        found.stop(
            f'none of the {len(entries)} label maps that were opened has a pixel of any class: '
            f'correct {option}.metainfo.classes, {option}.reduce_zero_label or the label maps'
        )


def _read_raw(path: str) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None
