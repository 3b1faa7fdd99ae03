"""A small drawn dataset: overlapping circles, rectangles and triangles.

The same pictures are laid out as COCO and as ADE20K lay theirs out, so that any detection or
segmentation config trains on them once its ``data_root`` says so::

    ROOT/shapes.json                                           the settings it was drawn with
    ROOT/coco/{train2017,val2017}/000000000001.jpg
    ROOT/coco/annotations/instances_{train2017,val2017}.json
    ROOT/ADEChallengeData2016/images/{training,validation}/ADE_{train,val}_00000001.jpg
    ROOT/ADEChallengeData2016/annotations/{training,validation}/ADE_{train,val}_00000001.png

H, W: height and width of an image in pixels. Pixel (row, column) covers [column, column + 1) x
[row, row + 1), in polygons and boxes as in the drawing itself.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.utils import ProgressBar

from .scene import CLASSES, Scene, draw_scene, without_specks

ADE_BACKGROUND = 1
ADE_LABELS = {'circle': 120, 'rectangle': 42, 'triangle': 115}
"""ADE20K's own label values: wall 1 is the background, ball 120, box 42, tent 115. They count from
1; 0 means ignored there (``reduce_zero_label=True``) and does not occur here."""

STAMP = 'shapes.json'
VERSION = 3  # to be raised whenever the same seed gives other pictures


@dataclass(frozen=True)
class Settings:
    """What decides every byte of a drawn dataset; stored in ``ROOT/shapes.json``."""

    num_train: int = 600
    num_val: int = 60
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, least in (('num_train', 1), ('num_val', 1), ('seed', 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}')


@dataclass(frozen=True)
class Split:
    """Names of one part of the dataset in the two layouts."""

    coco: str
    ade: str
    ade_prefix: str

    def paths(self, root: Path, index: int) -> tuple[Path, Path, Path]:
        """COCO image, ADE20K image and ADE20K label map of image ``index``, counted from 1."""
        ade, stem = root / 'ADEChallengeData2016', f'{self.ade_prefix}_{index:08d}'
        return (
            root / 'coco' / self.coco / f'{index:012d}.jpg',
            ade / 'images' / self.ade / f'{stem}.jpg',
            ade / 'annotations' / self.ade / f'{stem}.png',
        )

    def annotations(self, root: Path) -> Path:
        return root / 'coco' / 'annotations' / f'instances_{self.coco}.json'


TRAIN = Split('train2017', 'training', 'ADE_train')
VAL = Split('val2017', 'validation', 'ADE_val')


def draw_shapes(
    root: str | os.PathLike,
    num_train: int = Settings.num_train,
    num_val: int = Settings.num_val,
    seed: int = Settings.seed,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Draw the dataset below ``root``, in COCO's and in ADE20K's layout.

    Images are 200 to 480 pixels high and wide and never square; each shows 1 to 4 shapes. At least
    65 % of every shape is visible, in a piece at least 40 pixels high and wide, and no visible
    part has a hole. COCO's polygons, boxes (x, y, w, h) and areas describe the visible part; in
    the label maps every pixel has one of four values, see ``ADE_LABELS``.

    Equal settings give equal bytes (with the same NumPy and OpenCV), and image k of a split does
    not depend on how many are drawn. ``root`` appears only when the dataset is complete; a process
    that is killed leaves at most a hidden folder ``.NAME-drawing-*`` beside it.

    Args:
        root: Folder of the dataset; parents are made.
        num_train: Training images.
        num_val: Validation images.
        seed: Non-negative.
        overwrite: Whether a dataset of other settings, or a damaged one, is drawn anew.
            A folder that this function did not make is never replaced.
        progress: Whether to print what is done, on a terminal with a bar.

    Returns:
        True if it was drawn, False if a complete dataset of these settings was there.

    Raises:
        ValueError: A number is out of range.
        FileExistsError: ``root`` holds something else, or a dataset of other settings and
            ``overwrite`` is False.
    """
    settings = Settings(num_train, num_val, seed)
    root = Path(root).expanduser().resolve()
    if _is_drawn(root, settings, overwrite):
        if progress:
            print(f'{root} holds these images already: nothing to draw')
        return False

    root.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-drawing-', dir=root.parent) as scratch:
        new, old = Path(scratch, 'new'), Path(scratch, 'old')
        shown = progress and sys.stdout.isatty()
        bar = ProgressBar(num_train + num_val) if shown else None
        for part, (split, count) in enumerate(((TRAIN, num_train), (VAL, num_val))):
            _draw_split(new, split, part, count, seed, bar)
        (new / STAMP).write_text(json.dumps(asdict(settings), indent=2) + '\n')
        if shown:
            print()
        if _is_drawn(root, settings, overwrite):  # by another process meanwhile
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
        print(f'drew {num_train} training and {num_val} validation images below {root}')
    return True


def label_map(scene: Scene) -> np.ndarray:
    """ADE20K's label value of every pixel of ``scene``, uint8, shape (H, W)."""
    labels = np.full(scene.image.shape[:2], ADE_BACKGROUND, np.uint8)
    for shape, mask in zip(scene.shapes, scene.visible, strict=True):
        labels[mask] = ADE_LABELS[shape.name]
    return labels


def coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    """COCO's instance annotations of ``scene``; ids are unique within a split."""
    annotations = []
    for number, (shape, mask) in enumerate(zip(scene.shapes, scene.visible, strict=True), 1):
        mask = without_specks(mask)
        polygons = _polygons(mask)
        points = np.concatenate(polygons)
        low, high = points.min(0), points.max(0)
        annotation = dict(id=image_id * 100 + number, image_id=image_id, iscrowd=0)
        annotation['category_id'] = CLASSES.index(shape.name) + 1
        annotation['segmentation'] = [polygon.ravel().tolist() for polygon in polygons]
        annotation['area'] = float(mask.sum())
        annotation['bbox'] = [*low.tolist(), *(high - low).tolist()]
        annotations.append(annotation)
    return annotations


def _is_drawn(root: Path, settings: Settings, overwrite: bool) -> bool:
    """Whether ``root`` is complete; an error if it must not be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = Settings(**json.loads((root / STAMP).read_text()))
    except (OSError, ValueError, TypeError):
        raise FileExistsError(
            f'{root} exists and is not a drawn shapes dataset (it holds no valid {STAMP}); '
            'give a new folder, or move this one away'
        ) from None
    splits = ((TRAIN, settings.num_train), (VAL, settings.num_val))
    files = [split.annotations(root) for split, _ in splits]
    for split, count in splits:
        files += [path for index in range(count) for path in split.paths(root, index + 1)]
    missing = next((path for path in files if not path.is_file()), None)
    if found == settings and missing is None:
        return True
    if overwrite:
        return False
    problem = f'lacks {missing}' if found == settings else f'was drawn with {found}, not {settings}'
    raise FileExistsError(
        f'the dataset in {root} {problem}; give another folder, or overwrite=True (--overwrite) '
        'to draw this one anew'
    )


def _draw_split(
    root: Path, split: Split, part: int, count: int, seed: int, bar: ProgressBar | None
) -> None:
    annotations_file = split.annotations(root)
    for path in (annotations_file, *split.paths(root, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(1, count + 1):
        scene = draw_scene(seed, part, index)
        height, width = scene.image.shape[:2]
        coco_image, ade_image, ade_labels = split.paths(root, index)
        coco_image.write_bytes(_encoded('.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95]))
        ade_labels.write_bytes(_encoded('.png', label_map(scene), []))
        try:
            os.link(coco_image, ade_image)
        except OSError:  # a file system without hard links
            shutil.copyfile(coco_image, ade_image)
        image = dict(id=index, file_name=coco_image.name, width=width, height=height, license=1)
        images.append(image)
        annotations += coco_annotations(scene, index)
        if bar is not None:
            bar.update()
    info = dict(description=f'mmgcvit shapes, seed {seed}, {split.coco}', version=str(VERSION))
    licence = dict(id=1, name='Apache-2.0', url='https://www.apache.org/licenses/LICENSE-2.0')
    categories = [dict(id=i, name=name, supercategory='shape') for i, name in enumerate(CLASSES, 1)]
    dataset = dict(info=info, licenses=[licence], categories=categories)
    annotations_file.write_text(json.dumps(dict(dataset, images=images, annotations=annotations)))


def _encoded(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    # Not cv2.imwrite: on a full disk it returns False instead of saying what is wrong.
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines along the edges of a mask's pixels, one (n, 2) array of x and y a piece."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = mask[y : y + height, x : x + width].astype(np.uint8)
    # findContours runs through pixel centres, half a pixel too far in; on the mask enlarged four
    # times it runs an eighth of a pixel from the edge, and rounding puts it there.
    large = cv2.resize(crop, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = (np.rint((contour + 0.5) / 4 + (x, y)).astype(np.int32) for contour in contours)
    return [cv2.approxPolyDP(outline, 0.75, True)[:, 0].astype(float) for outline in outlines]
