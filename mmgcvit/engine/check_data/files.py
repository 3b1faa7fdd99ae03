"""Whether images are there and open."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from ...sampling import evenly
from .report import Findings

FEW = 5000  # so many files are looked for within a moment, on a network's disk too
SOME = 20


def spread(number: int, wanted: int | None) -> list[int]:
    """Return ``wanted`` indices below ``number``, evenly spread with both ends; None for all."""
    return evenly(number, number if wanted is None else wanted)


def find_missing(paths: Sequence[str], what: str, remedy: str, fast: bool, found: Findings) -> None:
    """Look for files and add one problem if some are missing.

    Args:
        paths: Files.
        what: Their name in the message, in the plural.
        remedy: What to do if they are missing.
        fast: Whether only some of very many are looked for.
        found: Takes the problem.
    """
    wanted = SOME if fast and len(paths) > FEW else None
    looked = [paths[i] for i in spread(len(paths), wanted)]
    missing = [path for path in looked if not os.path.isfile(path)]
    if missing:
        found.stop(f'{len(missing)} of {len(looked)} {what} are missing, as {missing[0]}: {remedy}')


def open_images(paths: Sequence[str], found: Findings) -> Iterator[tuple[int, tuple[int, int]]]:
    """Open images that exist and yield the index and the size (height, width) of each.

    The size is that which mmcv sees, turned as the image's Exif data says.
    """
    broken = []
    for index, path in enumerate(paths):
        if not os.path.isfile(path):
            continue  # reported as missing
        try:
            with Image.open(path) as image:
                image.load()
                width, height = ImageOps.exif_transpose(image).size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f'{path} ({error})')
            continue
        yield index, (height, width)
    if broken:
        found.stop(
            f'{len(broken)} of {len(paths)} images that were opened are broken, as {broken[0]}: '
            'get them again, or take them out of the dataset'
        )


def is_remote(dataset: object) -> bool:
    """Tell whether a dataset's files are read from somewhere else than this machine's folders."""
    backend = (getattr(dataset, 'backend_args', None) or {}).get('backend', 'local')
    places = [dataset.data_root or '', dataset.ann_file or '', *dataset.data_prefix.values()]
    return backend != 'local' or any('://' in str(place) for place in places)


def has_root(dataset: object, option: str, found: Findings) -> bool:
    """Tell whether a dataset's root is there, and add a problem if not."""
    root = dataset.data_root
    if not root or Path(root).is_dir():
        return True
    found.stop(
        f'data_root {root} does not exist (looked for from {Path.cwd()}): put the dataset there, '
        f'or say where it is with --cfg-options {option}.data_root=PATH'
    )
    return False
