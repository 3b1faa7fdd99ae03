"""A small synthetic dataset of overlapping circles, rectangles and triangles.

The same images are stored in the layouts of COCO and ADE20K, so any detection or segmentation
config can train on them after a change of ``data_root``::

    ROOT/shapes.json                                           settings of the dataset
    ROOT/coco/{train2017,val2017}/000000000001.jpg
    ROOT/coco/annotations/instances_{train2017,val2017}.json
    ROOT/ADEChallengeData2016/images/{training,validation}/ADE_{train,val}_00000001.jpg
    ROOT/ADEChallengeData2016/annotations/{training,validation}/ADE_{train,val}_00000001.png

With ``panoptic=True``, there are also COCO's panoptic annotations, with the background as stuff::

    ROOT/coco/annotations/panoptic_{train2017,val2017}.json
    ROOT/coco/annotations/panoptic_{train2017,val2017}/000000000001.png

H, W: height and width of an image in pixels. In images, polygons and boxes, pixel (row, column)
covers [column, column + 1) x [row, row + 1).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..panoptic import segment_colors
from .folder import VERSION, Layout, Settings, draw_dataset
from .panoptic import panoptic_annotation, panoptic_categories
from .scene import CLASSES, Scene, draw_scene, without_small_parts

ADE_BACKGROUND = 1
ADE_LABELS = {'circle': 120, 'rectangle': 42, 'triangle': 115}
"""Label values of ADE20K: wall (1) for the background, ball (120), box (42) and tent (115). ADE20K
ignores the value 0 (``reduce_zero_label=True``), which does not occur here."""


@dataclass(frozen=True)
class Split:
    """Names of a split in the two layouts."""

    coco: str
    ade: str
    ade_prefix: str

    def paths(self, root: Path, index: int) -> tuple[Path, Path, Path]:
        """Return COCO image, ADE20K image and ADE20K label map of an image, counted from 1."""
        ade, stem = root / 'ADEChallengeData2016', f'{self.ade_prefix}_{index:08d}'
        return (
            root / 'coco' / self.coco / f'{index:012d}.jpg',
            ade / 'images' / self.ade / f'{stem}.jpg',
            ade / 'annotations' / self.ade / f'{stem}.png',
        )

    def annotations(self, root: Path, kind: str = 'instances') -> Path:
        return root / 'coco' / 'annotations' / f'{kind}_{self.coco}.json'

    def panoptic_map(self, root: Path, index: int) -> Path:
        return self.annotations(root, 'panoptic').with_suffix('') / f'{index:012d}.png'


TRAIN = Split('train2017', 'training', 'ADE_train')
VAL = Split('val2017', 'validation', 'ADE_val')


def draw_shapes(
    root: str | os.PathLike,
    num_train: int = Settings.num_train,
    num_val: int = Settings.num_val,
    seed: int = Settings.seed,
    overwrite: bool = False,
    progress: bool = True,
    panoptic: bool = False,
) -> bool:
    """Draw the dataset in the folder ``root``, in the layouts of COCO and ADE20K.

    Height and width of images are 200 to 480 pixels and never equal. Each image shows 1 to 4
    shapes. At least 65 % of each shape is visible, its largest visible part is at least 40 pixels
    high and wide, and no visible part has a hole. COCO's polygons, boxes (x, y, w, h) and areas
    describe the visible part. In the label maps, each pixel has one of four values, see
    ``ADE_LABELS``.

    Equal settings give equal bytes (with the same versions of NumPy and OpenCV). Image k of a split
    does not depend on the number of images.

    Args:
        root: Folder of the dataset. Missing parent folders are created.
        num_train: Number of training images.
        num_val: Number of validation images.
        seed: Seed, at least 0.
        overwrite: See :func:`~mmgcvit.datasets.folder.draw_dataset`.
        progress: Whether to print messages, and a progress bar on a terminal.
        panoptic: Whether to draw COCO's panoptic annotations too. The other files are the same.

    Returns:
        True if the dataset was drawn, False if a complete dataset with these settings existed.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If ``root`` exists and must not be replaced, see
            :func:`~mmgcvit.datasets.folder.draw_dataset`.
    """
    settings = Settings(num_train, num_val, seed)
    layout = PANOPTIC_SHAPES if panoptic else SHAPES
    return draw_dataset(layout, root, settings, overwrite, progress)


def label_map(scene: Scene) -> np.ndarray:
    """Return the ADE20K label map of a scene, uint8, (H, W)."""
    labels = np.full(scene.image.shape[:2], ADE_BACKGROUND, np.uint8)
    for shape, mask in zip(scene.shapes, scene.visible, strict=True):
        labels[mask] = ADE_LABELS[shape.name]
    return labels


def coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    """Return the COCO instance annotations of a scene. Their ids are unique within a split."""
    annotations = []
    for number, (shape, mask) in enumerate(zip(scene.shapes, scene.visible, strict=True), 1):
        mask = without_small_parts(mask)
        polygons = _polygons(mask)
        points = np.concatenate(polygons)
        low, high = points.min(0), points.max(0)
        annotation = dict(
            id=image_id * 100 + number,
            image_id=image_id,
            iscrowd=0,
            category_id=CLASSES.index(shape.name) + 1,
            segmentation=[polygon.ravel().tolist() for polygon in polygons],
            area=float(mask.sum()),
            bbox=[*low.tolist(), *(high - low).tolist()],
        )
        annotations.append(annotation)
    return annotations


def _files(root: Path, settings: Settings, panoptic: bool = False) -> Iterator[Path]:
    splits = ((TRAIN, settings.num_train), (VAL, settings.num_val))
    for split, _ in splits:
        yield split.annotations(root)
        if panoptic:
            yield split.annotations(root, 'panoptic')
    for split, count in splits:
        for index in range(1, count + 1):
            yield from split.paths(root, index)
            if panoptic:
                yield split.panoptic_map(root, index)


def _draw(
    root: Path, settings: Settings, update: Callable[[], None], panoptic: bool = False
) -> None:
    for part, (split, count) in enumerate(((TRAIN, settings.num_train), (VAL, settings.num_val))):
        _draw_split(root, split, part, count, settings.seed, update, panoptic)


SHAPES = Layout('shapes', 'shapes.json', _files, _draw)
# the same settings and stamp: a dataset with more files is complete for both
PANOPTIC_SHAPES = Layout(
    'shapes', 'shapes.json', partial(_files, panoptic=True), partial(_draw, panoptic=True)
)


def _draw_split(
    root: Path,
    split: Split,
    part: int,
    count: int,
    seed: int,
    update: Callable[[], None],
    panoptic: bool,
) -> None:
    annotations_file = split.annotations(root)
    maps = [split.panoptic_map(root, 1)] if panoptic else []
    for path in (annotations_file, *split.paths(root, 1), *maps):
        path.parent.mkdir(parents=True, exist_ok=True)
    images, annotations, panoptic_annotations = [], [], []
    for index in range(1, count + 1):
        scene = draw_scene(seed, part, index)
        height, width = scene.image.shape[:2]
        coco_image, ade_image, ade_labels = split.paths(root, index)
        coco_image.write_bytes(jpeg(scene.image))
        ade_labels.write_bytes(_encoded('.png', label_map(scene), []))
        try:
            os.link(coco_image, ade_image)
        except OSError:  # the file system does not support hard links
            shutil.copyfile(coco_image, ade_image)
        image = dict(id=index, file_name=coco_image.name, width=width, height=height, license=1)
        images.append(image)
        annotations += coco_annotations(scene, index)
        if panoptic:
            path = split.panoptic_map(root, index)
            ids, annotation = panoptic_annotation(scene, index)
            path.write_bytes(_encoded('.png', segment_colors(ids)[..., ::-1], []))
            panoptic_annotations.append(dict(annotation, file_name=path.name))
        update()
    info = dict(description=f'mmgcvit shapes, seed {seed}, {split.coco}', version=str(VERSION))
    apache = dict(id=1, name='Apache-2.0', url='https://www.apache.org/licenses/LICENSE-2.0')
    categories = [dict(id=i, name=name, supercategory='shape') for i, name in enumerate(CLASSES, 1)]
    dataset = dict(info=info, licenses=[apache], categories=categories)
    annotations_file.write_text(json.dumps(dict(dataset, images=images, annotations=annotations)))
    if panoptic:
        dataset.update(categories=panoptic_categories(), images=images)
        content = json.dumps(dict(dataset, annotations=panoptic_annotations))
        split.annotations(root, 'panoptic').write_text(content)


def jpeg(image: np.ndarray) -> bytes:
    """Encode a BGR image, uint8, (H, W, 3)."""
    return _encoded('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def _encoded(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    # cv2.imwrite would return False on a full disk, without the cause
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Return outlines along the pixel edges of a mask: x and y, (n, 2), per connected component."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = mask[y : y + height, x : x + width].astype(np.uint8)
    # findContours returns pixel centers, half a pixel inside the edge. In a mask enlarged four
    # times, they are an eighth of a pixel from the edge, so rounding moves them onto it.
    large = cv2.resize(crop, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = (np.rint((contour + 0.5) / 4 + (x, y)).astype(np.int32) for contour in contours)
    return [cv2.approxPolyDP(outline, 0.75, True)[:, 0].astype(float) for outline in outlines]
