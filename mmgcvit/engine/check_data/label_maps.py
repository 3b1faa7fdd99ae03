"""Checks of segmentation datasets: folders of images and of label maps.

H, W: height and width of an image in pixels.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator

from ...errors import counted
from ..encodings import encoding_fault
from .report import Checks, Note, Problem, Unchecked
from .split import Split, channels, dataset, images, listed, read_items


def folders(split: Split) -> Iterator[Problem]:
    """Folders and lists of images that do not exist."""
    if split.has_remote_images:
        return
    for key, folder in split.dataset.data_prefix.items():
        unused = key == 'seg_map_path' and split.labels is None
        if folder is not None and not unused and not os.path.isdir(folder):
            yield Problem(
                f'the folder {folder} does not exist: put the files there, or set their path '
                f'with --cfg-options {split.option}.data_prefix.{key}=PATH (relative to data_root)'
            )
    path = split.dataset.ann_file
    if path and not os.path.exists(path):
        yield Problem(
            f'the list of images {path} does not exist: put it there, or change '
            f'{split.option}.ann_file'
        )
    elif os.path.isfile(path):
        with open(path, 'rb') as file:
            fault = encoding_fault(path, file.read(4))
        if fault is not None:
            yield Problem(fault)


def reading(split: Split) -> Iterator[Problem]:
    """Datasets without images."""
    read_items(split)
    split.counts.unit = 'pixels'
    if not split.items:
        built = split.dataset
        yield Problem(
            f'there are no images *{built.img_suffix} below {built.data_prefix["img_path"]}: put '
            f'them there, or set {split.option}.img_suffix'
        )


def image_files(split: Split) -> Iterator[Problem]:
    """Images that do not exist."""
    remedy = f'put them there, or change {split.option}.ann_file'
    yield from split.missing('img_path', 'images', remedy)


def label_files(split: Split) -> Iterator[Problem]:
    """Label maps that do not exist."""
    if split.labels is not None:
        remedy = (
            f'put them there, or set {split.option}.seg_map_suffix and data_prefix.seg_map_path'
        )
        yield from split.missing('seg_map_path', 'label maps', remedy)


def label_maps(split: Split) -> Iterator[Problem]:
    """Label maps that cannot be loaded, or have values of no class."""
    faults: dict[str, list[str]] = defaultdict(list)
    classes, ignored = split.classes, split.dataset.ignore_index
    for opened in split.opened:
        path = opened.item.get('seg_map_path', '')
        if opened.label_fault:
            faults[opened.label_fault].append(path)
        beyond = [value for value in opened.pixels if value >= len(classes) and value != ignored]
        if beyond:
            reduced = ' after label 0 became ignored' if split.dataset.reduce_zero_label else ''
            faults[
                f'have label values of no class{reduced}, such as {max(beyond)} (the '
                f'{len(classes)} classes are 0 to {len(classes) - 1}, and {ignored} is ignored): '
                f'correct {split.option}.metainfo.classes, {split.option}.reduce_zero_label or the '
                'label maps'
            ].append(path)
    for fault, paths in faults.items():
        yield Problem(
            f'{len(paths)} of {len(split.opened)} label maps (for example {paths[0]}) {fault}'
        )


def orientation(split: Split) -> Iterator[Problem]:
    """Label maps of another size than their images, or images that are rotated without them."""
    sizes, maybe = [], []
    for opened in split.opened:
        if opened.label_size is None or opened.size is None:
            continue
        if opened.label_size != opened.size:
            sizes.append(opened)
        # 5 to 8 swap height and width, which shows whether the label map fits
        elif opened.orientation > 1 and (opened.orientation < 5 or len(set(opened.size)) == 1):
            maybe.append(opened)
    remedy = (
        "set color_type='color_ignore_orientation' in LoadImageFromFile of every pipeline, or "
        'remove the tag from the images'
    )
    turned = [each for each in sizes if each.orientation > 4]
    if turned:
        yield Problem(
            f'{len(turned)} images (for example {turned[0].item["img_path"]}) are rotated by their '
            f'Exif orientation, but their label maps are not, so their sizes differ: {remedy}'
        )
    if len(turned) < len(sizes):
        first = next(each for each in sizes if each not in turned)
        yield Problem(
            f'{len(sizes) - len(turned)} of {len(split.opened)} label maps (for example '
            f'{first.item["seg_map_path"]}) have another size than their images: resize the label '
            'maps'
        )
    if maybe:
        yield Problem(
            f'{len(maybe)} images (for example {maybe[0].item["img_path"]}) are rotated or '
            'mirrored by their Exif orientation, but their label maps are not: unless the label '
            f'maps were drawn on the rotated images, {remedy}',
            stops=False,
        )


def empty_class(split: Split) -> Iterator[Problem | Note]:
    """Classes without a pixel."""
    pixels: Counter[int] = Counter()
    for opened in split.opened:
        pixels.update(opened.pixels)
    labelled = [opened for opened in split.opened if opened.pixels]
    if not labelled:
        if split.trains:
            raise Unchecked(f'{split.option}.pipeline has loaded no label map')
        return
    ignored = split.dataset.ignore_index
    lost = pixels.pop(ignored, 0)
    counts = {name: pixels[label] for label, name in enumerate(split.classes)}
    split.counts.classes = counts
    split.counts.annotated = sum(
        any(0 <= v < len(counts) and v != ignored for v in opened.pixels) for opened in labelled
    )
    empty = [name for name, number in counts.items() if not number]
    if not empty:
        return
    opened, total = len(labelled), len(split.items)
    if len(empty) == len(counts):
        yield Problem(
            f'none of the {opened} label maps that were opened has a pixel of any class: correct '
            f'{split.option}.metainfo.classes, {split.option}.reduce_zero_label or the label maps'
        )
        return
    text = (
        f'{counted(len(empty), "class has", "classes have")} no pixel in the {opened} of {total} '
        f'label maps that were opened: {listed(empty)}'
    )
    if len(empty) == len(counts) - 1 and lost:
        yield Problem(
            f'{text}; {ignored} is ignored, but {lost} pixels have this value: if it stands for a '
            f'class, change it to the number of the class, 0 to {len(counts) - 1}',
            stops=opened == total,
        )
    elif split.trains and opened == total:
        yield split.never_predicted(text, 'label maps with them')
    else:
        yield Note(text)


# check → checks that have to succeed first
LABEL_MAPS: Checks = {
    dataset: (),
    folders: (dataset,),
    reading: (folders,),
    image_files: (reading,),
    label_files: (reading,),
    images: (reading,),
    channels: (images,),
    label_maps: (reading,),
    orientation: (reading,),
    empty_class: (label_maps,),
}
