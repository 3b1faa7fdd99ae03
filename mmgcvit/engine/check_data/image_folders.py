"""Checks of classification datasets: folders of classes, or a list of images with labels.

They are mmpretrain's ``CustomDataset`` and ``ImageNet``. Without a list, a label is the position of
the image's folder among all folders, in alphabetical order.
"""

import os
from collections import Counter
from collections.abc import Iterator

from ...errors import counted, describe
from .report import Checks, Note, Problem, Unchecked
from .split import FEW, Split, channels, dataset, images, listed, read_items


def image_list(split: Split) -> Iterator[Problem]:
    """Lists of images that do not exist, or have lines without a label."""
    path = split.dataset.ann_file
    if not path or split.is_remote:
        return
    if not os.path.isfile(path):
        yield Problem(
            f'the list of images {path} does not exist: put it there, or change '
            f'{split.option}.ann_file'
        )
        return
    if not split.dataset.with_label:
        return
    with open(path, encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(' ')
            if not (name and label.removeprefix('-').isdecimal()):
                yield Problem(
                    f'line {number} of {path} is {line.strip()[:80]!r}, but has to be the path of '
                    'an image, a space, and the number of its class, counted from 0: correct it'
                )
                return


def class_folders(split: Split) -> Iterator[Problem]:
    """Folders of classes that do not exist, or are not those of ``metainfo.classes``."""
    if split.dataset.ann_file or split.has_remote_images:
        return
    root = split.dataset.img_prefix
    if not os.path.isdir(root):
        yield Problem(
            f'the folder {root} does not exist: put the images there, or set its path with '
            f'--cfg-options {split.option}.data_prefix=PATH (relative to data_root)'
        )
        return
    if not split.dataset.with_label:
        return
    with os.scandir(root) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir()]
    loose = [e.name for e in entries if e.is_file() and split.dataset.is_valid_file(e.name)]
    if loose:
        number = f'{len(loose)} images are in {root} itself, for example {loose[0]}'
        yield Problem(
            f'{number}, and not in the folder of a class: '
            + (
                'they are not used; move them into the folder of their class, or remove them'
                if folders
                else 'make a folder for each class in it and move the images there, or set '
                f'{split.option}.ann_file to a list of images with labels'
            ),
            stops=not folders,
        )
    hidden = [name for name in folders if name.startswith('.')]
    if hidden:
        yield Problem(
            f'the hidden folder {os.path.join(root, hidden[0])} counts as a class, so the labels '
            'of all others are wrong: remove it'
        )
    names = split.dataset.metainfo.get('classes')  # of the config: the folders are not yet read
    if names is None or not folders:
        return
    lacking = [name for name in names if name not in folders]
    others = [name for name in folders if name not in names]
    if len(names) != len(folders):
        # ImageNet's folders have other names than its classes
        details = f'; missing: {listed(lacking)}' if 0 < len(lacking) < len(names) else ''
        details += f'; unexpected: {listed(others)}' if 0 < len(others) < len(folders) else ''
        yield Problem(
            f'{root} has {len(folders)} folders, but there are {len(names)} classes{details}: make '
            f'one folder per class, which may be empty, or correct {split.option}.metainfo.classes'
        )
    elif 0 < len(lacking) < len(names):
        yield Problem(
            f'{root} has folders {listed(others)} instead of {listed(lacking)}, and a label is the '
            'position of a folder in alphabetical order: rename them as the classes, in '
            f'{split.option}.metainfo.classes'
        )
    elif not lacking and list(names) != folders:
        yield Problem(
            f'the classes are {listed(list(names))}, but the folders of {root} in alphabetical '
            f'order, which are the labels, are {listed(folders)}: set '
            f'{split.option}.metainfo.classes to the names of the folders in that order'
        )


def reading(split: Split) -> Iterator[Problem]:
    """Datasets without images."""
    split.counts.unit = 'images'
    built = split.dataset
    if split.fast and built.with_label and not built.ann_file and not split.has_remote_images:
        _read_first_images(split)
    else:
        try:
            read_items(split)
        except RuntimeError as error:
            if 'Found 0 files' not in str(error):
                raise
        except OSError as error:  # as in the training
            yield Problem(
                f'the dataset cannot be read ({describe(error)}): correct or remove this file or '
                f'folder, or correct {split.option}'
            )
            return
    if not split.items:
        place = f'in the list {built.ann_file}' if built.ann_file else f'below {built.img_prefix}'
        yield Problem(
            f'there are no images ({", ".join(sorted(built.extensions))}) {place}: put them there, '
            f'or correct {split.option}'
        )


def _read_first_images(split: Split) -> None:
    """Read one image of each class: to list all files of ImageNet takes minutes on a network."""
    from mmpretrain.datasets.custom import find_folders

    built = split.dataset
    folders, built.folder_to_idx = find_folders(built.img_prefix)
    if built.metainfo.get('classes') is None:
        built._metainfo['classes'] = tuple(folders)
    split.in_part = True
    for folder in folders[:FEW]:
        files = (
            os.path.join(root, name)
            for root, _, names in os.walk(os.path.join(built.img_prefix, folder))
            for name in names
            if built.is_valid_file(name)
        )
        if path := next(files, None):
            split.items.append(dict(img_path=path, gt_label=built.folder_to_idx[folder]))


def image_files(split: Split) -> Iterator[Problem]:
    """Images that do not exist."""
    if split.dataset.ann_file:
        remedy = f'put them there, or change {split.option}.ann_file or data_prefix'
        yield from split.missing('img_path', 'images', remedy)


def empty_class(split: Split) -> Iterator[Problem | Note]:
    """Classes without an image."""
    labels = [item['gt_label'] for item in split.items if 'gt_label' in item]
    if len(labels) < len(split.items):
        raise Unchecked('the images have no labels')
    names = split.classes or tuple(str(label) for label in range(max(labels) + 1))
    number = Counter(labels)
    if not split.in_part:
        split.counts.annotated = len(labels)
        split.counts.classes = {name: number[label] for label, name in enumerate(names)}
    searched = names[:FEW] if split.in_part else names
    empty = [name for label, name in enumerate(searched) if not number[label]]
    if len(names) == 1:
        yield Problem(
            f'there is only one class, {names[0]!r}, so nothing is learned: add a folder of other '
            'images'
        )
    elif len(names) - len(empty) == 1 and split.trains:
        yield Problem(
            f'all images are of the class {next(n for n in names if n not in empty)!r}, so nothing '
            'is learned: add images of other classes'
        )
    elif empty:
        text = f'{counted(len(empty), "class has", "classes have")} no images: {listed(empty)}'
        yield split.never_predicted(text, 'images of them') if split.trains else Note(text)


# check → checks that have to succeed first
IMAGE_FOLDERS: Checks = {
    dataset: (),
    image_list: (dataset,),
    class_folders: (dataset,),
    reading: (image_list, class_folders),
    image_files: (reading,),
    images: (reading,),
    channels: (images,),
    empty_class: (reading,),
}
