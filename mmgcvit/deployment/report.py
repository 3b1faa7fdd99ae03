"""Report on an exported model: its differences from PyTorch, and its latency, on real images.

H, W: height and width of an image in pixels.
"""

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

from ..engine.screen import logging_from, name_failing_images
from ..errors import UserError, describe
from ..evaluation.metrics import evaluators
from ..inference import TrainedModel
from ..inference.inputs import find_inputs
from ..progress import with_progress
from ..sampling import evenly
from ..visualization.images import load_image
from .parity import Parity, as_sample
from .runtime import OnnxModel


class Images(Protocol):
    """Images for the report, see :func:`open_images`."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the batch of an image, and the image as RGB, (H, W, 3), uint8."""

    def process(self, *samples: BaseDataElement) -> None:
        """Evaluate the predictions for an image: one data sample per model."""

    def metrics(self, indices: Sequence[int]) -> dict[str, tuple[float, float]]:
        """Return the metrics of both models on the images with these indices, by name."""


def open_images(trained: TrainedModel, folder: str | os.PathLike | None = None) -> Images:
    """Return the images of a folder, or by default the config's test set with its evaluator.

    Raises:
        UserError: If there are no images.
    """
    return _TestSet(trained.cfg) if folder is None else _Folder(trained, folder)


def compare(
    trained: TrainedModel,
    model: OnnxModel,
    images: Images,
    number: int = 50,
    say: Callable[[str], None] = print,
) -> Parity:
    """Run a model in PyTorch and in ONNX Runtime on the same images.

    The time in PyTorch is that of ``model.test_step``, without loading and resizing. The time in
    ONNX Runtime is that of the complete graph.

    Args:
        trained: The model in PyTorch, on the CPU.
        model: The exported model.
        images: See :func:`open_images`. Metrics of graphs that do not resize are not computed.
        number: Largest number of images, at least 1. They are evenly spaced.
        say: Called with each line of progress, and for each image that is skipped because it cannot
            be loaded.

    Raises:
        UserError: If no image can be loaded.
    """
    indices = evenly(len(images), number)
    parity = Parity()
    compared: list[int] = []
    skipped: list[UserError] = []
    for index in with_progress(indices, 'comparing images', say):
        try:
            batch, image = images.load(index)
        except UserError as error:  # names the image
            say(f'skipped: {error}')
            skipped.append(error)
            continue
        if not model.resizes:
            image = _without_resizing(batch)
        for _ in range(1 if compared else 2):  # the first run is slower
            start = time.perf_counter()
            with torch.no_grad():
                (sample,) = trained.model.test_step(batch)
            middle = time.perf_counter()
            outputs = model(image)
            end = time.perf_counter()
        compared.append(index)
        parity.seconds.append((middle - start, end - middle))
        other = as_sample(outputs, sample, model.mask_thr)
        parity.add(sample, other)
        if model.resizes:
            images.process(sample, other)
    if not compared:
        raise UserError(f'none of the {len(indices)} images could be loaded: {skipped[0]}')
    parity.skipped = len(skipped)
    if model.resizes:
        parity.metrics = images.metrics(compared)
    return parity


class _Folder:
    """Images of a folder, without annotations."""

    def __init__(self, trained: TrainedModel, folder: str | os.PathLike) -> None:
        found = find_inputs(folder, Path(os.devnull))
        self.trained = trained
        self.paths = [each.path for each in found if not each.is_video]
        if not self.paths:
            raise UserError(f'--images {folder} contains only videos: pass a folder of images')

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[dict[str, Any], np.ndarray]:
        path = self.paths[index]
        return self.trained.load_batch(path), self.trained.load_image(path)

    def process(self, *samples: BaseDataElement) -> None:
        pass

    def metrics(self, indices: Sequence[int]) -> dict[str, tuple[float, float]]:
        return {}


class _TestSet:
    """The config's test set, and its evaluator for each of the two models."""

    def __init__(self, cfg: Config) -> None:
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
        try:
            with _silent():
                self.dataset = DATASETS.build(loader.dataset)
                self.evaluators = [Evaluator(list(evaluators(cfg))) for _ in range(2)]
                self.length = len(self.dataset)
        except Exception as error:  # a dataset can raise anything
            raise UserError(
                f'the test set of {cfg.filename} cannot be loaded ({describe(error)}): correct '
                'test_dataloader.dataset, pass other images with --images FOLDER, or skip the '
                'report with --no-report'
            ) from error
        if not self.length:
            raise UserError(
                f'the test set of {cfg.filename} is empty: pass images with --images FOLDER'
            )
        for evaluator in self.evaluators:
            evaluator.dataset_meta = self.dataset.metainfo
        name_failing_images(self.dataset)

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> tuple[dict[str, Any], np.ndarray]:
        batch = pseudo_collate([self.dataset[index]])
        return batch, load_image(self.dataset, self.dataset.get_data_info(index))

    def process(self, *samples: BaseDataElement) -> None:
        for evaluator, sample in zip(self.evaluators, samples, strict=True):
            evaluator.process([sample])

    def metrics(self, indices: Sequence[int]) -> dict[str, tuple[float, float]]:
        ids = [self.dataset.get_data_info(index).get('img_id') for index in indices]
        found = []
        for evaluator in self.evaluators:
            for metric in evaluator.metrics:
                if hasattr(metric, 'img_ids'):  # COCO's, which would count all images of the file
                    metric.img_ids = ids
            with _silent():
                found.append(evaluator.evaluate(len(indices)))
        return {
            name: (float(value), float(found[1][name]))
            for name, value in found[0].items()
            if isinstance(value, int | float | np.number) and value >= 0  # COCO: -1 for none
        }


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide the tables that datasets and metrics print and log."""
    with logging_from(logging.ERROR), contextlib.redirect_stdout(io.StringIO()):
        yield


def _without_resizing(batch: dict[str, Any]) -> np.ndarray:
    """Return the resized image of a batch, RGB, and let the model predict for this image."""
    (sample,), (image,) = batch['data_samples'], batch['inputs']
    sample.set_metainfo(dict(ori_shape=sample.img_shape, scale_factor=(1.0, 1.0)))
    return image.permute(1, 2, 0).flip(2).numpy()
