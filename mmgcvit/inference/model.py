"""A trained model, built from a config and a checkpoint, and its inputs from image files.

H, W: height and width of an image in pixels.
"""

import copy
import logging
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, TRANSFORMS
from torch import nn

from ..analysis.building import build_untrained
from ..engine import check_checkpoint, load_config, name_failing_images
from ..engine.device import Machine, choose_device, require_device
from ..engine.palettes import Color, adapt_palettes, complete_palette
from ..engine.wrappers import dataset_configs
from ..errors import UserError, describe
from ..evaluation.tile_options import TileOptions, split
from ..evaluation.tiles import CutTiles, TiledModel
from ..registry import class_of
from ..task import Task, require_task
from ..visualization.images import load_image
from ..weights import Checkpoint, open_checkpoint
from ..weights.fit import load_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode with a checkpoint's weights.

    Attributes:
        cfg: Config of the model.
        task: Detection, segmentation or classification.
        model: The model, on its device.
        dataset: The config's test dataset, without its annotations. Its pipeline loads images.
        classes: Name of each class.
        palette: RGB color of each class, 0 to 255.
    """

    cfg: Config
    task: Task
    model: nn.Module
    dataset: BaseDataset
    classes: tuple[str, ...]
    palette: list[Color]

    def load_image(self, path: str | os.PathLike) -> np.ndarray:
        """Load an image with the config's transforms, RGB, (H, W, 3), uint8.

        Raises:
            UserError: If the transforms cannot load the file.
        """
        _require_file(path)
        try:
            return load_image(self.dataset, _info(path))
        except Exception as error:  # the transforms can raise anything
            raise UserError(
                f'{path} cannot be loaded by the test pipeline ({_reason(path, error)}): pass an '
                'undamaged image in the format of the test set'
            ) from error

    def load_sample(self, path: str | os.PathLike) -> dict[str, Any]:
        """Apply the config's test pipeline to an image file.

        Returns:
            ``inputs``, the image as a tensor, and ``data_samples`` with its metainfo.

        Raises:
            UserError: If the pipeline cannot process the file.
        """
        _require_file(path)
        sample = self.dataset.pipeline(_info(path))
        if sample is None:
            raise UserError(
                f'{path} is dropped by the test pipeline: it is empty or damaged, or '
                'the pipeline filters it; remove the filter, or pass another image'
            )
        return sample

    def load_batch(self, path: str | os.PathLike) -> dict[str, Any]:
        """Return the batch of one image file, the argument of ``model.test_step``."""
        return pseudo_collate([self.load_sample(path)])

    def in_tiles(self, options: TileOptions) -> 'TrainedModel':
        """Return a detector or segmentor that predicts images in tiles.

        Raises:
            UserError: If the options do not suit the test pipeline, or the model is a classifier.
        """
        pipeline = self.dataset.pipeline
        size, overlap = options.of(pipeline.transforms, self.task)
        loading, following = split(pipeline.transforms)
        dataset = copy.copy(self.dataset)
        dataset.pipeline = type(pipeline)([*loading, CutTiles(size, overlap, following)])
        return replace(self, model=TiledModel(self.model).eval(), dataset=dataset)


def load_trained(
    config: str | os.PathLike,
    checkpoint: str,
    device: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Build a config's model, load a checkpoint into it and prepare it for inference.

    No code in the checkpoint is executed. Every tensor of the model must be in the checkpoint with
    the same shape.

    Args:
        config: Config file, which needs a ``test_dataloader`` for its pipeline.
        checkpoint: Path or URL of a checkpoint of the complete model.
        device: 'cpu', 'cuda' or 'cuda:N'. Defaults to the GPU if there is one.
        options: Settings that override the config, by dotted names.

    Raises:
        UserError: If the config, the checkpoint or the device cannot be used, or the checkpoint is
            of another model.
    """
    cfg = load_config(config, options=options)
    task = require_task(cfg)
    found = open_checkpoint(check_checkpoint(checkpoint))
    device = require_device(device) if device else choose_device()
    model = revert_sync_batchnorm(build_untrained(cfg))
    load_checkpoint(model, found, resize=False)
    dataset = _build_dataset(cfg)
    classes = _class_names(model, task, found, dataset)
    palette = complete_palette(dataset.metainfo.get('palette'), len(classes))[: len(classes)]
    return TrainedModel(cfg, task, model.to(device).eval(), dataset, classes, palette)


def _require_file(path: str | os.PathLike) -> None:
    if not os.path.isfile(path):
        raise UserError(f'{path} is not a file: pass the path of an image')


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if not os.path.getsize(path):
        return 'the file is empty'
    if isinstance(error, cv2.error | AssertionError):  # of mmcv, without an explanation
        return 'it is damaged or not an image'
    return describe(error)


def _info(path: str | os.PathLike) -> dict[str, Any]:
    # what the datasets give to their pipelines, apart from annotations
    return dict(img_path=os.fspath(path), img_id=0, seg_fields=[], reduce_zero_label=False)


def _build_dataset(cfg: Config) -> BaseDataset:
    """Build the test dataset, which reads no annotations and whose pipeline loads local files.

    Raises:
        UserError: If the config has no test dataset, or it cannot be built.
    """
    adapt_palettes(cfg, Machine('cpu'))  # mmseg's datasets refuse incomplete ones
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    configs = list(dataset_configs(loader.get('dataset'), 'test_dataloader.dataset'))
    if not configs or not configs[0][1].get('pipeline'):
        raise UserError(
            f'{cfg.filename} has no test_dataloader with a dataset and a pipeline that loads '
            'images: add it, for example as in configs/detection/custom_coco.py'
        )
    settings = copy.deepcopy(configs[0][1])
    settings['lazy_init'] = True
    settings['pipeline'] = [
        _of_files(each) for each in settings['pipeline'] if not _loads_annotations(each, cfg)
    ]
    try:
        dataset = DATASETS.build(settings)
    except Exception as error:  # a dataset can raise anything
        raise UserError(
            f'{configs[0][0]} of {cfg.filename} cannot be built ({describe(error)}): its pipeline '
            'and class names are needed; correct it, or replace it with --cfg-options'
        ) from error
    name_failing_images(dataset)
    return dataset


def _loads_annotations(transform: Mapping[str, Any], cfg: Config) -> bool:
    cls = class_of(transform, TRANSFORMS, cfg.get('default_scope'))
    return 'Annotation' in getattr(cls, '__name__', '')


def _of_files(transform: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a transform that reads local files, not the database of the config's images."""
    backends = [key for key in ('backend_args', 'file_client_args') if key in transform]
    for key in backends:
        transform[key] = None
    return transform


def _class_names(
    model: nn.Module, task: Task, checkpoint: Checkpoint, dataset: BaseDataset
) -> tuple[str, ...]:
    """Return the class names in the checkpoint, or else those in the config.

    Names are used only if their number is that of the model's classes.
    """
    number = _num_classes(model, task)
    configured = tuple(dataset.metainfo.get('classes') or ())
    found = {'checkpoint': checkpoint.classes, 'config': configured}
    fitting = {
        source: names for source, names in found.items() if names and number in (None, len(names))
    }
    if not fitting:
        numbers = ', '.join(
            f'{len(names) or "none"} in the {place}' for place, names in found.items()
        )
        if number is None:
            raise UserError(
                f'the names of the classes are not known ({numbers}): set '
                'test_dataloader.dataset.metainfo.classes'
            )
        print_log(
            f'the model has {number} classes, and their names are not known ({numbers}). They are '
            'called class 0, class 1 and so on; to change that, set '
            'test_dataloader.dataset.metainfo.classes',
            'current',
            logging.WARNING,
        )
        return tuple(f'class {index}' for index in range(number))
    if len(set(fitting.values())) > 1:
        print_log(
            f'the class names of {checkpoint.source} are used; those of the config differ',
            'current',
            logging.WARNING,
        )
    return next(iter(fitting.values()))


def _num_classes(model: nn.Module, task: Task) -> int | None:
    """Return the number of classes of the model's heads, or None if it is not known."""
    # other heads of a panoptic model know only the classes of things
    names = ('panoptic_fusion_head', *task.heads)
    heads = [getattr(model, name) for name in names if getattr(model, name, None) is not None]
    numbers = (getattr(module, 'num_classes', None) for head in heads for module in head.modules())
    return next((number for number in numbers if isinstance(number, int)), None)
