"""Drawing a dataset into a folder: completely or not at all, and with its settings beside it."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.utils import ProgressBar

VERSION = 3  # increase it whenever the same seed gives different images


@dataclass(frozen=True)
class Settings:
    """Settings that determine every byte of a dataset, stored in its folder.

    Attributes:
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        seed: Seed, at least 0.
        version: Version of the drawing code.
    """

    num_train: int = 600
    num_val: int = 60
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, least in (('num_train', 1), ('num_val', 1), ('seed', 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}')


class DatasetMismatchError(FileExistsError):
    """A drawn dataset is incomplete or has different settings, and ``overwrite`` is False.

    Args:
        problem: Description without the remedy.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(
            f'{problem}; choose a different folder, or overwrite=True (--overwrite) to replace it'
        )
        self.problem = problem


@dataclass(frozen=True)
class Layout:
    """The files of a drawn dataset.

    Attributes:
        name: Its name in messages.
        stamp: Name of the file with its settings.
        files: Called with the folder and the settings; returns all files except the stamp.
        draw: Called with an empty folder, the settings, and a function to call after each image.
    """

    name: str
    stamp: str
    files: Callable[[Path, Settings], Iterable[Path]]
    draw: Callable[[Path, Settings, Callable[[], None]], None]


def draw_dataset(
    layout: Layout, root: str | os.PathLike, settings: Settings, overwrite: bool, progress: bool
) -> bool:
    """Draw a dataset in the folder ``root``, unless it is already there.

    ``root`` is created only when the dataset is complete; a killed process leaves at most a hidden
    folder ``.NAME-drawing-*`` next to it.

    Args:
        layout: Which files to draw.
        root: Folder of the dataset. Missing parent folders are created.
        settings: Settings.
        overwrite: Whether to replace a dataset that is incomplete or has different settings. A
            folder that this function did not create is never replaced.
        progress: Whether to print messages, and a progress bar on a terminal.

    Returns:
        True if the dataset was drawn, False if a complete dataset with these settings existed.

    Raises:
        DatasetMismatchError: If the existing dataset is incomplete or has different settings, and
            ``overwrite`` is False.
        FileExistsError: If ``root`` exists and is not such a dataset.
    """
    root = Path(root).expanduser().resolve()
    if _is_drawn(layout, root, settings, overwrite):
        if progress:
            print(f'{root} already contains these images: nothing to draw')
        return False

    root.parent.mkdir(parents=True, exist_ok=True)
    # in the same parent folder, since renames are atomic only within one file system
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-drawing-', dir=root.parent) as scratch:
        new, old = Path(scratch, 'new'), Path(scratch, 'old')
        new.mkdir()
        shown = progress and sys.stdout.isatty()
        bar = ProgressBar(settings.num_train + settings.num_val) if shown else None
        layout.draw(new, settings, bar.update if bar else lambda: None)
        (new / layout.stamp).write_text(json.dumps(asdict(settings), indent=2) + '\n')
        if shown:
            print()
        # another process may have drawn it meanwhile
        if _is_drawn(layout, root, settings, overwrite):
            return False
        try:
            if root.exists():
                root.rename(old)
            new.rename(root)
        except BaseException:
            if old.exists() and not root.exists():
                old.rename(root)
            raise
    if progress:
        print(
            f'drew {settings.num_train} training and {settings.num_val} validation images in {root}'
        )
    return True


def _is_drawn(layout: Layout, root: Path, settings: Settings, overwrite: bool) -> bool:
    """Whether ``root`` is a complete dataset with these settings.

    Raises:
        FileExistsError: If it is not, and must not be replaced; see :func:`draw_dataset`.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        existing = Settings(**json.loads((root / layout.stamp).read_text()))
    except (OSError, ValueError, TypeError):
        raise FileExistsError(
            f'{root} exists and is not a {layout.name} dataset (it does not contain a valid '
            f'{layout.stamp}); choose a different folder, or move this one away'
        ) from None
    missing = next((path for path in layout.files(root, settings) if not path.is_file()), None)
    if existing == settings and missing is None:
        return True
    if overwrite:
        return False
    if existing == settings:
        problem = f'lacks {missing}'
    else:
        problem = f'was drawn with {existing}, not {settings}'
    raise DatasetMismatchError(f'the dataset in {root} {problem}')
