"""Hook that saves the predictions of a test run as images."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmengine.dist.utils
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..engine.palettes import complete_palette
from ..errors import describe
from .images import image_name, load_image

SHOWN = 5  # warnings about images that cannot be drawn


class PaintPredictions(Hook):
    """Save every test image with its ground truth (left) and prediction (right) in one folder.

    The visualization hooks of mmdet and mmseg save to different folders, and by default mmseg's
    hook only saves every 50th batch. The images are those that the pipeline loads, see
    :func:`.load_image`. An image that cannot be drawn is skipped with a warning, and the test goes
    on.

    Args:
        folder: Output folder. File names and subfolders match those of the test images.
    """

    priority = 'LOW'

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.failures = 0

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        metainfo = dict(dataset.metainfo)
        if classes := metainfo.get('classes'):
            metainfo['palette'] = complete_palette(metainfo.get('palette'), len(classes))
        with _drawing_in_all_processes():
            runner.visualizer.dataset_meta = metainfo

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
                self.failures += 1
                if self.failures <= SHOWN:
                    image = sample.get('img_path', 'an image without img_path in its meta_keys')
                    self._warn(f'{image} was not drawn ({describe(error)})')

    def after_test(self, runner: Runner) -> None:
        if self.failures > SHOWN:
            self._warn(f'{self.failures} images were not drawn, the first {SHOWN} are listed above')

    def _draw(self, sample: BaseDataElement, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        image = load_image(dataset, sample.metainfo)
        name = image_name(dataset, sample.img_path)
        if not cv2.haveImageWriter(name):  # .npy, or a key of a database
            name += '.png'
        with _drawing_in_all_processes():
            runner.visualizer.add_datasample(
                name, image, data_sample=sample, out_file=str(self.folder / name)
            )

    def _warn(self, text: str) -> None:
        print_log(f'{self.folder}: {text}', logger='current', level=logging.WARNING)


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
