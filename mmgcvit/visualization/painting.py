"""Hook that saves the predictions of a test run as images."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmengine.dist.utils
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch.utils.data import Dataset

from ..engine.palettes import complete_palette
from ..errors import UserError, describe
from ..registry import class_of
from ..task import CLASSIFICATION, DETECTION, SEGMENTATION, task_of
from .images import image_dataset, image_name, load_image

VISUALIZER_TYPES = {
    DETECTION: 'mmdet.DetLocalVisualizer',
    SEGMENTATION: 'mmseg.SegLocalVisualizer',
    CLASSIFICATION: 'mmpretrain.UniversalVisualizer',
}
SHOWN = 5  # maximum number of warnings about single images


class PaintPredictions(Hook):
    """Save every test image with its ground truth (left) and prediction (right) in one folder.

    The visualization hooks of mmdet and mmseg save to different folders, and by default mmseg's
    hook only saves every 50th batch. The images are those that the pipeline loads, see
    :func:`.load_image`. An image that cannot be drawn is skipped with a warning, and the test goes
    on.

    Args:
        folder: Output folder. File names and subfolders match those of the test images.
        strict: Whether an image that cannot be drawn is an error instead.
    """

    priority = 'LOW'

    def __init__(self, folder: str | os.PathLike, strict: bool = False) -> None:
        self.folder = Path(folder)
        self.strict = strict
        self.failures = 0
        self.visualizer: Visualizer | None = None

    def before_test(self, runner: Runner) -> None:
        """Set the visualizer, classes and colors.

        Raises:
            UserError: If the config's visualizer does not draw predictions, and the task of the
                model is unknown.
        """
        self.visualizer = _drawing_visualizer(runner)
        dataset = runner.test_dataloader.dataset
        metainfo = dict(dataset.metainfo)
        if classes := metainfo.get('classes'):
            metainfo['palette'] = complete_palette(metainfo.get('palette'), len(classes))
        with _drawing_in_all_processes():
            self.visualizer.dataset_meta = metainfo

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        for sample in outputs or ():
            try:
                self._draw(sample, runner)
            # whatever is wrong with a picture, the metrics are worth more
            except Exception as error:
                if self.strict:
                    raise
                self.failures += 1
                if self.failures <= SHOWN:
                    image = sample.get('img_path', 'an image without img_path in its meta_keys')
                    self._warn(f'{image} was not drawn ({describe(error)})')

    def after_test(self, runner: Runner) -> None:
        # only the first process prints warnings
        failures = sum(all_gather_object(self.failures))
        if failures:
            self._warn(f'{failures} images were not drawn, see the warnings above')

    def _draw(self, sample: BaseDataElement, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        image = load_image(dataset, sample.metainfo)
        name = image_name(dataset, sample.img_path)
        if not cv2.haveImageWriter(name):  # .npy, or a key of a database
            name += '.png'
        out_file = str(self.folder / name)
        visualizer = self.visualizer or runner.visualizer
        with _drawing_in_all_processes():
            if hasattr(visualizer, 'visualize_cls'):
                classes = visualizer.dataset_meta.get('classes')
                visualizer.visualize_cls(image, sample, classes, out_file=out_file)
            else:
                sample = _in_original_coordinates(sample, image_dataset(dataset, sample.img_path))
                if 'pred_panoptic_seg' in sample:
                    sample = without_empty_map(sample, len(visualizer.dataset_meta['classes']))
                visualizer.add_datasample(name, image, data_sample=sample, out_file=out_file)

    def _warn(self, text: str) -> None:
        print_log(f'{self.folder}: {text}', logger='current', level=logging.WARNING)


def _drawing_visualizer(runner: Runner) -> Visualizer:
    """Return the runner's visualizer, or the one of the model's task if it draws no predictions."""
    kind = type(runner.visualizer)
    if kind.add_datasample is not Visualizer.add_datasample or hasattr(kind, 'visualize_cls'):
        return runner.visualizer
    task = task_of(runner.cfg)
    if task is None:
        raise UserError(
            f'the visualizer {kind.__name__} does not draw predictions: set visualizer.type to '
            f'{", ".join(VISUALIZER_TYPES.values())} or your own'
        )
    return class_of(VISUALIZER_TYPES[task], VISUALIZERS)()


def without_empty_map(sample: BaseDataElement, classes: int) -> BaseDataElement:
    """Return a sample without its panoptic map if no segment was predicted.

    mmdet's visualizer fails to draw such a map.

    Args:
        sample: Sample with predictions.
        classes: Number of classes, which is also the value of pixels without a segment.
    """
    if 'pred_panoptic_seg' in sample and (sample.pred_panoptic_seg.sem_seg == classes).all():
        sample = sample.clone()
        del sample.pred_panoptic_seg
    return sample


def _in_original_coordinates(sample: BaseDataElement, dataset: Dataset) -> BaseDataElement:
    """Return a sample whose boxes and masks of the ground truth are those of the original image.

    If the pipeline resizes the image after loading the annotations, they are resized too. The
    predictions are always those of the original image.
    """
    from mmcv.transforms import LoadAnnotations, Resize

    kinds = [
        kind
        for each in _transforms(getattr(dataset, 'pipeline', None))
        for kind in (LoadAnnotations, Resize)
        if isinstance(each, kind)
    ]
    if 'gt_instances' not in sample or kinds[:1] != [LoadAnnotations] or Resize not in kinds:
        return sample
    sample = sample.clone()
    truth = sample.gt_instances = sample.gt_instances.clone()
    truth.bboxes = truth.bboxes / truth.bboxes.new_tensor(sample.scale_factor).repeat(2)
    if 'masks' in truth:
        truth.masks = truth.masks.resize(sample.ori_shape)
    return sample


def _transforms(pipeline: object) -> Iterator[object]:
    """Yield the transforms of a pipeline and those that they wrap, such as ``CutTiles``."""
    for each in getattr(pipeline, 'transforms', ()):
        yield each
        yield from _transforms(each)


@contextmanager
def _drawing_in_all_processes() -> Iterator[None]:
    """Enable the visualizer in every process of a test run, since each has different images.

    Its methods are decorated with mmengine's ``master_only``, so they only work on rank 0.
    """
    is_main_process = mmengine.dist.utils.is_main_process
    mmengine.dist.utils.is_main_process = lambda group=None: True
    try:
        yield
    finally:
        mmengine.dist.utils.is_main_process = is_main_process
