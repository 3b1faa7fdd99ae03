"""Random images with random but valid ground truth, in the format of a dataloader."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement, PixelData
from torch import Generator, Tensor

from ..engine.options import walk
from ..task import CLASSIFICATION, SEGMENTATION, Task

BOXES = 8


def random_batch(model: ConfigDict, task: Task, batch_size: int, shape: tuple[int, int]) -> dict:
    """Return a batch for a model's ``train_step`` and ``test_step``. The batch is deterministic.

    Args:
        model: Config of a detector, segmentor or classifier. The number of classes is read from it
            and, for detectors, whether the ground truth has masks and semantic labels.
        task: Task of the model.
        batch_size: Number of images.
        shape: H and W of each image.

    Returns:
        Dict with ``inputs``, a list of (C, H, W) uint8 images, and ``data_samples``, a list.
    """
    head = next((model[name] for name in task.heads if model.get(name)), model)
    num_classes = _number(head, 'num_classes') or _number(model, 'num_things_classes') or 1
    image_shape = (image_channels(model), *shape)
    if task is SEGMENTATION:
        from mmseg.structures import SegDataSample

        def label_pixels(random: Generator) -> SegDataSample:
            sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
            labels = torch.randint(num_classes, (1, *shape), generator=random)
            sample.gt_sem_seg = PixelData(data=labels)
            return sample

        return _batch(label_pixels, batch_size, image_shape)
    if task is CLASSIFICATION:
        from mmpretrain.structures import DataSample

        def label_image(random: Generator) -> DataSample:
            sample = DataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
            return sample.set_gt_label(torch.randint(num_classes, (1,), generator=random))

        return _batch(label_image, batch_size, image_shape)
    return _detection_batch(model, num_classes, batch_size, shape)


def image_channels(model: ConfigDict) -> int:
    """Return the number of channels of a model's images.

    This is the backbone's ``in_channels``, or else the number of means of the data preprocessor.
    """
    backbone = model.get('backbone') or {}
    while isinstance(backbone.get('module'), Mapping):  # in a wrapper such as LoRAModel
        backbone = backbone['module']
    means = (model.get('data_preprocessor') or {}).get('mean') or ()
    # a single mean may be for all channels
    return backbone.get('in_channels') or (len(means) if len(means) > 1 else 3)


def _batch(
    make_sample: Callable[[Generator], BaseDataElement],
    batch_size: int,
    image_shape: tuple[int, int, int],
) -> dict:
    random = Generator().manual_seed(0)
    batch: dict[str, list] = {'inputs': [], 'data_samples': []}
    for _ in range(batch_size):
        image = torch.randint(256, image_shape, generator=random, dtype=torch.uint8)
        batch['inputs'].append(image)
        batch['data_samples'].append(make_sample(random))
    return batch


def _detection_batch(
    model: ConfigDict, num_classes: int, batch_size: int, shape: tuple[int, int]
) -> dict:
    from mmdet.testing import demo_mm_inputs

    roi_head = model.get('roi_head')
    if roi_head is None:
        with_mask = any('mask' in name.rpartition('.')[2] for name, _ in walk(model))
    else:
        with_mask = roi_head.get('mask_head') is not None
    batch = demo_mm_inputs(
        batch_size,
        (image_channels(model), *shape),
        num_items=[BOXES] * batch_size,
        # demo_mm_inputs draws labels from 1 to num_classes - 1
        num_classes=num_classes + 1,
        with_mask=with_mask,
    )
    # stuff labels follow the thing labels; the semantic head of HTC has separate labels
    num_stuff, first = _number(model, 'num_stuff_classes'), num_classes
    if roi_head is not None and roi_head.get('semantic_head'):
        num_stuff, first = _number(roi_head.semantic_head, 'num_classes'), 0
    for sample in batch['data_samples']:
        sample.gt_instances.labels -= 1
        if num_stuff:
            sample.gt_sem_seg = PixelData(sem_seg=first + _stripes(num_stuff, shape))
    return batch


def _stripes(number: int, shape: tuple[int, int]) -> Tensor:
    """Return vertical stripes with labels from 0 to ``number - 1``, (1, H, W)."""
    height, width = shape
    return (torch.arange(width) * number // width).repeat(1, height, 1)


def _number(config: Any, key: str) -> int:
    """Return the first integer under a key at any depth of a config, or 0 if there is none."""
    values = (value for name, value in walk({'': config}) if name.rpartition('.')[2] == key)
    return next((value for value in values if isinstance(value, int)), 0)
