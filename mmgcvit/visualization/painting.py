"""Hook that saves the predictions of a test run as images."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mmengine.dist.utils
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


class PaintPredictions(Hook):
    """Save every test image with its ground truth (left) and prediction (right) in one folder.

    The visualization hooks of mmdet and mmseg save to different folders, and by default mmseg's
    hook only saves every 50th batch.

    Args:
        folder: Output folder. File names and subfolders match those of the test images.
    """

    priority = 'LOW'

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def before_test(self, runner: Runner) -> None:
        with _drawing_in_all_processes():
            runner.visualizer.dataset_meta = runner.test_dataloader.dataset.metainfo

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        import mmcv

        for sample in outputs or ():
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            name = self._name(sample.img_path, runner)
            with _drawing_in_all_processes():
                runner.visualizer.add_datasample(
                    name, image, data_sample=sample, out_file=str(self.folder / name)
                )

    @staticmethod
    def _name(path: str, runner: Runner) -> str:
        """Return the path relative to the image folder: subfolders may have the same file names."""
        dataset = runner.test_dataloader.dataset
        prefixes = getattr(dataset, 'data_prefix', None) or {}
        for prefix in (prefixes.get('img'), prefixes.get('img_path')):
            if prefix and Path(path).is_relative_to(prefix):
                return str(Path(path).relative_to(prefix))
        return Path(path).name


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
