"""Random images with random but valid ground truth, as a dataloader gives them."""

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData

from ..task import SEGMENTATION, Task

BOXES = 8


def random_batch(model: ConfigDict, task: Task, batch_size: int, shape: tuple[int, int]) -> dict:
    """Return a batch for a model's ``train_step`` and ``test_step``; always the same one.

    Args:
        model: Config of a detector or segmentor, which says how many classes there are and
            whether there are masks.
        task: What it does.
        batch_size: Images.
        shape: H and W of each image.

    Returns:
        ``inputs``, a list of (3, H, W) images in uint8, and ``data_samples``, a list.
    """
    if task is SEGMENTATION:
        return _segmentation_batch(_first(model.decode_head).num_classes, batch_size, shape)
    from mmdet.testing import demo_mm_inputs

    roi_head = model.get('roi_head')
    head = model.bbox_head if roi_head is None else roi_head.bbox_head
    num_classes = _first(head).num_classes
    batch = demo_mm_inputs(
        batch_size,
        (3, *shape),
        num_items=[BOXES] * batch_size,
        # it draws labels from 1 on
        num_classes=num_classes + 1,
        with_mask=roi_head is not None and roi_head.get('mask_head') is not None,
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels -= 1
    return batch


def _first(head: ConfigDict | list[ConfigDict]) -> ConfigDict:
    """Return the first of a cascade's heads, or the only one."""
    return head[0] if isinstance(head, list) else head


def _segmentation_batch(num_classes: int, batch_size: int, shape: tuple[int, int]) -> dict:
    from mmseg.structures import SegDataSample

    random = torch.Generator().manual_seed(0)
    batch = {'inputs': [], 'data_samples': []}
    for _ in range(batch_size):
        image = torch.randint(256, (3, *shape), generator=random, dtype=torch.uint8)
        labels = torch.randint(num_classes, (1, *shape), generator=random)
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        sample.gt_sem_seg = PixelData(data=labels)
        batch['inputs'].append(image)
        batch['data_samples'].append(sample)
    return batch
