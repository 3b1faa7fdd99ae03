"""Image of a detector's predictions next to the ground truth.

H, W: height and width of an image in pixels, n: number of instances.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from torch import nn

from ..engine.palettes import complete_palette
from ..files import write_atomically
from ..sampling import evenly
from .images import image_name, load_image

if TYPE_CHECKING:
    from mmdet.visualization import DetLocalVisualizer

PANEL = 560  # longer edge of an image in pixels, large enough for legible text
FONT = 12  # minimum font size in points
CAPTION = 30  # height of the caption above each panel in pixels
MARGIN = 8


def draw_predictions(
    model: nn.Module,
    dataset: BaseDataset,
    out_file: str | os.PathLike,
    num_images: int = 8,
    score_thr: float = 0.5,
) -> Path:
    """Draw pairs of ground truth (left) and predictions (right) in one PNG file.

    This runs ``model.test_step`` on evenly spaced images of ``dataset``. Both panels show the
    original image, resized to 560 pixels along its longer edge, independent of the pipeline. In
    distributed training, call this function on rank 0 only.

    Args:
        model: An mmdet detector. Its training mode is restored afterwards.
        dataset: An mmdet dataset with the test pipeline, for example built from
            ``cfg.val_dataloader.dataset``.
        out_file: PNG file to write. An existing file is replaced atomically.
        num_images: Maximum number of images.
        score_thr: Only predictions with a higher score are drawn.

    Returns:
        The path of the file.

    Raises:
        ValueError: If an argument is out of range or the dataset is empty.
    """
    import mmcv
    from mmdet.structures import DetDataSample

    out_file = Path(out_file).expanduser()
    if out_file.suffix.lower() != '.png':
        raise ValueError(f'out_file must end in .png, got {str(out_file)!r}')
    if num_images < 1:
        raise ValueError(f'num_images must be at least 1, got {num_images}')
    if not 0 <= score_thr < 1:
        raise ValueError(f'score_thr must be in [0, 1), got {score_thr}')
    if len(dataset) == 0:
        raise ValueError('the dataset is empty; check data_root, ann_file and metainfo.classes')

    visualizer = _visualizer(dataset)
    pairs = []
    for index in evenly(len(dataset), num_images):
        info = dataset.get_data_info(index)
        image = load_image(dataset, info)
        size = image.shape[:2]
        scale = PANEL / max(size)
        height, width = (max(1, round(length * scale)) for length in size)
        sample = DetDataSample(
            gt_instances=_resized(_ground_truth(info, size), size, (height, width)),
            pred_instances=_resized(_predictions(model, dataset[index]), size, (height, width)),
        )
        image = mmcv.imresize(image, (width, height), interpolation='bicubic')
        visualizer.add_datasample('pair', image, sample, pred_score_thr=score_thr)
        pairs.append((Path(image_name(dataset, info['img_path'])).name, visualizer.get_image()))
    picture = cv2.cvtColor(_grid(pairs), cv2.COLOR_RGB2BGR)
    return write_atomically(out_file, cv2.imencode('.png', picture)[1].tobytes())


def _visualizer(dataset: BaseDataset) -> 'DetLocalVisualizer':
    from mmdet.visualization import DetLocalVisualizer

    class Visualizer(DetLocalVisualizer):
        """A visualizer with a minimum font size: mmdet's text on small instances is illegible."""

        def draw_texts(
            self,
            texts: str,
            positions: torch.Tensor,
            font_sizes: int,
            colors: tuple,
            bboxes: list[dict],
            horizontal_alignments: str = 'left',
        ) -> DetLocalVisualizer:
            return super().draw_texts(
                texts,
                positions,
                font_sizes=max(font_sizes, FONT),
                colors=colors,
                bboxes=bboxes,
                horizontal_alignments=horizontal_alignments,
            )

    classes = dataset.metainfo['classes']
    palette = complete_palette(dataset.metainfo.get('palette'), len(classes))
    visualizer = Visualizer(line_width=2, alpha=0.55, text_color=(255, 255, 255))
    visualizer.dataset_meta = dict(classes=classes, palette=palette)
    return visualizer


def _ground_truth(info: dict, size: tuple[int, int]) -> InstanceData:
    """Return the annotations in coordinates of the original image.

    They are loaded separately, since the coordinates in a sample depend on the order of loading and
    resizing in the pipeline.
    """
    from mmdet.datasets.transforms import LoadAnnotations

    instances = [instance for instance in info['instances'] if not instance['ignore_flag']]
    with_mask = bool(instances) and all('mask' in instance for instance in instances)
    load = LoadAnnotations(with_bbox=True, with_mask=with_mask)
    loaded = load(dict(info, instances=instances, ori_shape=size))
    truth = InstanceData(
        bboxes=loaded['gt_bboxes'].tensor.reshape(-1, 4),
        labels=torch.from_numpy(loaded['gt_bboxes_labels']),
    )
    if with_mask:
        truth.masks = torch.from_numpy(loaded['gt_masks'].to_ndarray()).bool()
    return truth


def _predictions(model: nn.Module, sample: dict) -> InstanceData:
    """Return the predicted instances on the CPU, in coordinates of the original image."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            (result,) = model.test_step(pseudo_collate([sample]))
    finally:
        model.train(training)
    return result.pred_instances.cpu()


def _resized(instances: InstanceData, size: tuple[int, int], to: tuple[int, int]) -> InstanceData:
    """Resize boxes (n, 4) and masks (n, H, W) from the image size ``size`` to the size ``to``."""
    factors = torch.tensor([to[1] / size[1], to[0] / size[0]] * 2)
    # one pixel inside, since the visualizer warns about boxes that end at the image border
    inside = torch.tensor([to[1] - 1, to[0] - 1] * 2)
    boxes = torch.minimum(instances.bboxes * factors, inside).clamp(min=0)
    resized = InstanceData(bboxes=boxes, labels=instances.labels)
    if 'scores' in instances:
        resized.scores = instances.scores
    if 'masks' in instances:
        masks = np.asarray(instances.masks, np.float32)
        # linear interpolation and a threshold, since nearest would give jagged outlines
        large = [cv2.resize(mask, to[::-1], interpolation=cv2.INTER_LINEAR) > 0.5 for mask in masks]
        resized.masks = torch.from_numpy(np.stack(large)) if large else torch.zeros((0, *to)).bool()
    return resized


def _grid(pairs: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Arrange captioned pairs in rows, RGB, uint8, with two pairs per row if there are over two."""
    columns = 1 if len(pairs) <= 2 else 2
    half = max(picture.shape[1] for _, picture in pairs) // 2
    rows = []
    for start in range(0, len(pairs), columns):
        row = pairs[start : start + columns]
        height = max(picture.shape[0] for _, picture in row) + CAPTION + MARGIN
        canvas = np.full((height, columns * 2 * (half + MARGIN) + MARGIN, 3), 255, np.uint8)
        for place, (name, picture) in enumerate(row):
            middle = picture.shape[1] // 2
            for side, caption in enumerate((f'ground truth ({name})', 'prediction')):
                left = MARGIN + (2 * place + side) * (half + MARGIN)
                panel = picture[:, side * middle : (side + 1) * middle]
                canvas[CAPTION : CAPTION + len(panel), left : left + middle] = panel
                _write(canvas[:CAPTION, left : left + half], caption)
        rows.append(canvas)
    return np.concatenate(rows)


def _write(strip: np.ndarray, text: str) -> None:
    drawn = np.ascontiguousarray(strip)
    cv2.putText(drawn, text, (0, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 1, cv2.LINE_AA)
    strip[:] = drawn
