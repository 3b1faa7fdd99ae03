"""Image and video files to process, and the names of their outputs."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import files_below

IMAGES = ('.bmp', '.jpeg', '.jpg', '.npy', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')


@dataclass(frozen=True)
class Input:
    """An image or video.

    Attributes:
        path: The file.
        name: Path relative to the folder that was passed. It is kept in the names of the outputs
            with its suffix, so that ``a.jpg``, ``a.png`` and ``sub/a.jpg`` do not collide.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS

    def output(self, folder: Path, suffix: str) -> Path:
        """Return the path of an output, for example ``FOLDER/sub/a.jpg.json``."""
        return folder / f'{self.name}{suffix}'


def find_inputs(path: str | os.PathLike, out: Path) -> list[Input]:
    """Return the images and videos of a path: the file, or all files of a folder and subfolders.

    A single file is taken for an image if its suffix is not that of a video. In a folder, files
    with other suffixes and hidden files are left out, and so are those below ``out``. Symlinks are
    followed.

    Args:
        path: File or folder.
        out: Folder of the outputs, which may be below the folder of the inputs.

    Raises:
        UserError: If the path does not exist, the folder has no images or videos, or it is the
            folder of the outputs.
    """
    path = Path(path)
    if path.is_file():
        return [Input(path, path.name)]
    if not path.is_dir():
        raise UserError(
            f'{path} does not exist (current folder: {Path.cwd()}): pass an image, a video or a '
            'folder of them'
        )
    if path.resolve() == out.resolve():
        raise UserError(
            f'--out {out} is the folder of the inputs, whose pictures would be inputs of the next '
            'run: pass another folder'
        )
    found: list[Input] = []
    others: Counter[str] = Counter()
    for file in files_below(path, out):
        if file.suffix.lower() in IMAGES + VIDEOS:
            found.append(Input(file, file.relative_to(path).as_posix()))
        else:
            others[file.suffix.lower() or 'without suffix'] += 1
    left_out = ', '.join(f'{number} {suffix}' for suffix, number in others.most_common(4))
    if not found:
        raise UserError(
            f'{path} has no images ({" ".join(IMAGES)}) or videos ({" ".join(VIDEOS)})'
            f'{f", only other files ({left_out})" if others else ""}: pass another folder'
        )
    if others:
        print(f'{others.total()} other files in {path} are left out ({left_out})', flush=True)
    return found
