"""What the names of files and folders mean: splits, and folders of images or of annotations."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import PurePosixPath as Relative

SPLITS = {'train': 'train(ing)?', 'val': 'val(id(ation)?)?', 'test': 'test(ing)?'}
# names of folders that do not distinguish an image from its annotation, in lower case
OF_IMAGES = {
    *('image', 'images', 'img', 'imgs', 'img_dir', 'jpegimages', 'obj_train_data'),
    *('leftimg8bit', 'leftimg8bit_trainvaltest'),
}
OF_ANNOTATIONS = {
    *('label', 'labels', 'ann', 'anns', 'ann_dir', 'annot', 'annotation', 'annotations'),
    *('mask', 'masks', 'gt', 'segmentation', 'segmentationclass', 'segmentationobject'),
    *('label_maps', 'trimaps'),
    *('gtfine', 'gtfine_trainvaltest', 'gtcoarse'),
}
CONTAINERS = OF_IMAGES | OF_ANNOTATIONS
# further words beside that of a split
OTHERS = {'data', 'dir', 'map', 'maps', 'seg', 'set'}


def split_of(path: Relative, parts: Sequence[str] | None = None) -> str | None:
    """Return the split named by a folder of a path: 'train', 'val', 'test', or None.

    ``train``, ``training``, ``train2017``, ``train_set``, ``train_images`` and ``labels-train`` are
    names of a split, ``my-trains`` is not.
    """
    for part in reversed(path.parts[:-1] if parts is None else parts):
        split, _ = _split_and_words(part)
        if split:
            return split
    return None


def split_in_name(path: Relative) -> str | None:
    """Return the split named by a word in the file name, or else by a folder of the path."""
    words = re.findall(r'[a-z]+', path.stem.lower())
    return next((s for word in words if (s := split_of(path, [word]))), None) or split_of(path)


def in_annotations(file: Relative) -> bool:
    """Return whether a file is in a folder of annotations, by the name of the folder."""
    return any(
        part.lower() in OF_ANNOTATIONS or _split_and_words(part)[1] & {*OF_ANNOTATIONS, 'seg'}
        for part in file.parts[:-1]
    )


def is_part_of_split(name: str) -> bool:
    """Return whether a folder is that of one kind of files of a split, such as ``train_images``."""
    return bool(_split_and_words(name)[1])


def places(file: Relative) -> Iterator[str]:
    """Yield the folders that distinguish files of the same name."""
    for part in file.parts[:-1]:
        split, _ = _split_and_words(part)
        if split:
            yield split + ''.join(re.findall(r'\d+', part))
        elif part.lower() not in CONTAINERS:
            yield part


@lru_cache(maxsize=10000)  # many files are in few folders
def _split_and_words(name: str) -> tuple[str | None, frozenset[str]]:
    """Return the split in the name of a folder, or None, and the other words of its name."""
    words = re.findall(r'[^\W\d_]+', re.sub('(?<=[a-z])(?=[A-Z])', ' ', name).lower())
    for split, pattern in SPLITS.items():
        named = [word for word in words if re.fullmatch(f'{pattern}(set)?', word)]
        others = frozenset(words) - {*named}
        if named and others <= CONTAINERS | OTHERS:
            return split, others
    return None, frozenset()
