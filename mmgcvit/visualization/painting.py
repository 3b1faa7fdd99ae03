"""Painting each image of a test as it is predicted."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mmengine.dist.utils
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


class PaintPredictions(Hook):
    """Writes every tested image, ground truth left and prediction right, into one folder.

    The hooks of mmdet and mmseg write to different places, and mmseg's only one batch of 50.

    Args:
        folder: Where the pictures go, by the names of the images and of their subfolders.
    """

    priority = 'LOW'

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)

    def before_test(self, runner: Runner) -> None:
        with _every_process_draws():
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
            with _every_process_draws():
                runner.visualizer.add_datasample(
                    name, image, data_sample=sample, out_file=str(self.folder / name)
                )

    @staticmethod
    def _name(path: str, runner: Runner) -> str:
        """Return the path below the folder of the test's images: subfolders keep names apart."""
        dataset = runner.test_dataloader.dataset
        prefixes = getattr(dataset, 'data_prefix', None) or {}
        for prefix in (prefixes.get('img'), prefixes.get('img_path')):
            if prefix and Path(path).is_relative_to(prefix):
                return str(Path(path).relative_to(prefix))
        return Path(path).name


@contextmanager
def _every_process_draws() -> Iterator[None]:
    """Let a visualizer work in each process of a test, which all have other images.

    Its methods are mmengine's ``master_only``: in all processes but the first they do nothing.
    """
    asked = mmengine.dist.utils.is_main_process
    mmengine.dist.utils.is_main_process = lambda group=None: True
    try:
        yield
    finally:
        mmengine.dist.utils.is_main_process = asked
