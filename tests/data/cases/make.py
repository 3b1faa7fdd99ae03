"""Write small datasets and configs with which training once went wrong, one folder per case.

    python tests/data/cases/make.py OUT [CASE ...]

tests/test_cases.py runs the commands of each case and checks the outcome.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from mmgcvit.datasets import draw_shapes

CONFIGS = Path(__file__).parents[3] / 'configs'
CLASSES = ('circle', 'rectangle', 'triangle')
ARCH = (
    'dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2, '
    'layer_scale_init_value=0.5)'
)
DETECTOR = f"""_base_ = ['{CONFIGS}/detection/mask_rcnn_gcvit_shapes.py']
model = dict(
    backbone=dict(arch={ARCH}),
    neck=dict(in_channels=[16, 32, 64]),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = test_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
train_cfg = dict(max_epochs=1)
"""
SEGMENTOR = f"""_base_ = ['{CONFIGS}/segmentation/custom_dataset.py']
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(96, 96), keep_ratio=False),
    dict(type='PackSegInputs'),
]
data = dict(
    data_root='data/my_dataset', metainfo=dict(classes=('background', 'thing')), pipeline=pipeline
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
head = dict(num_classes=2, channels=16)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(arch='xxtiny', window_size=8, init_cfg=None),
    decode_head=head,
    auxiliary_head=head,
)
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
"""
CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CASES[function.__name__.replace('_', '-')] = function
    return function


def make(name: str, folder: Path) -> None:
    """Write the data and the configs of a case into a new folder."""
    folder.mkdir(parents=True)
    CASES[name](folder)


def detection(folder: Path) -> None:
    """Write drawn shapes, and ``det.py``, the config of a small Mask R-CNN."""
    draw_shapes(folder / 'data/shapes', num_train=8, num_val=4, progress=False)
    (folder / 'det.py').write_text(DETECTOR)


def edit(folder: Path, split: str, change: Callable[[dict], Any]) -> None:
    """Change the annotations of a split, 'train' or 'val'."""
    path = annotations(folder, split)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def annotations(folder: Path, split: str) -> Path:
    return folder / f'data/shapes/coco/annotations/instances_{split}2017.json'


def every_instance(**fields: Any) -> Callable[[dict], None]:
    """Return a change that sets fields of every instance. Functions get the instance."""

    def change(content: dict) -> None:
        for instance in content['annotations']:
            for name, value in fields.items():
                instance[name] = value(instance) if callable(value) else value

    return change


def first_instance(**fields: Any) -> Callable[[dict], None]:
    return lambda content: content['annotations'][0].update(fields)


def segmentation(folder: Path, label: int = 1, bands: int = 3) -> None:
    """Write random images with a labeled square, and ``seg.py``, the config of a small UPerNet.

    Args:
        folder: Folder of the case.
        label: Value of the square in the label maps.
        bands: Number of bands. Images of three are 8-bit JPEG, others are 12-bit TIFF.
    """
    generator = np.random.default_rng(0)
    for split in ('training', 'validation'):
        images, labels = (
            folder / 'data/my_dataset' / kind / split for kind in ('images', 'annotations')
        )
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index in range(4):
            pixels = np.zeros((96, 96), np.uint8)
            pixels[20:60, 20:60] = label
            Image.fromarray(pixels).save(labels / f'{index}.png')
            if bands == 3:
                image = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
                Image.fromarray(image).save(images / f'{index}.jpg')
            else:
                image = generator.integers(0, 4096, (96, 96, bands), dtype=np.uint16)
                options = dict(photometric='minisblack', planarconfig='contig')
                tifffile.imwrite(images / f'{index}.tif', image, **options)
    (folder / 'seg.py').write_text(SEGMENTOR)


@case
def space_in_path(folder: Path) -> None:
    detection(folder)
    shutil.copytree(folder / 'data/shapes', folder / 'data/my shapes')


@case
def six_bands(folder: Path) -> None:
    segmentation(folder, bands=6)
    (folder / 'bands.py').write_text("""_base_ = ['./seg.py']
pipeline = [
    dict(
        type='LoadImageFromFile',
        imdecode_backend='tifffile',
        color_type='unchanged',
        to_float32=True,
    ),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
data = dict(img_suffix='.tif', pipeline=pipeline)
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
model = dict(
    data_preprocessor=dict(mean=[0] * 6, std=[4096] * 6, bgr_to_rgb=False),
    backbone=dict(in_channels=6),
)
""")


@case
def orientation_ignored(folder: Path) -> None:
    detection(folder)
    for split in ('train', 'val'):
        content = json.loads(annotations(folder, split).read_text())
        path = folder / f'data/shapes/coco/{split}2017' / content['images'][0]['file_name']
        image = Image.open(path).convert('RGB')
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: rotated by 90 degrees
        image.save(path, exif=exif)


@case
def val_mask_empty(folder: Path) -> None:
    detection(folder)
    edit(folder, 'val', first_instance(segmentation=[]))


@case
def val_mask_of_four_numbers(folder: Path) -> None:
    detection(folder)
    edit(folder, 'val', first_instance(segmentation=[[1, 1, 9, 9]]))


@case
def all_crowds(folder: Path) -> None:
    detection(folder)
    for split in ('train', 'val'):
        edit(folder, split, every_instance(iscrowd=1))


@case
def boxes_alone(folder: Path) -> None:
    detection(folder)
    for split in ('train', 'val'):
        edit(folder, split, every_instance(segmentation=[]))


@case
def flat_polygon(folder: Path) -> None:
    detection(folder)
    edit(folder, 'train', every_instance(segmentation=lambda instance: instance['segmentation'][0]))


@case
def byte_order_mark(folder: Path) -> None:
    detection(folder)
    path = annotations(folder, 'train')
    path.write_text(path.read_text(), encoding='utf-8-sig')


@case
def metric_of_another_name(folder: Path) -> None:
    segmentation(folder)


@case
def masks_of_0_and_255(folder: Path) -> None:
    segmentation(folder, label=255)


@case
def retinanet(folder: Path) -> None:
    detection(folder)
    (
        folder / 'retinanet.py'
    ).write_text(f"""_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
root = 'data/shapes/coco/'
data = dict(data_root=root, metainfo=dict(classes={CLASSES}))
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
val_evaluator = test_evaluator = dict(ann_file=root + 'annotations/instances_val2017.json')
arch = dict(
    embed_dims=16,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 8),
    mlp_ratio=2,
    layer_scale_init_value=None,
)
model = dict(
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', window_size=8, arch=arch),
    neck=dict(in_channels=[16, 32, 64, 128]),
    bbox_head=dict(num_classes=3),
)
train_cfg = dict(max_epochs=1)
""")


@case
def lora(folder: Path) -> None:
    detection(folder)
    (folder / 'lora.py').write_text(f"""_base_ = ['./det.py']
custom_imports = dict(imports=['mmpretrain.models'], allow_failed_imports=False)
backbone = dict(
    type='mmgcvit.GCViT',
    arch={ARCH},
    window_size=8,
    out_indices=(0, 1, 2),
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.LoRAModel',
        alpha=4,
        rank=4,
        targets=[dict(type='.*qkv')],
        module=backbone,
    ),
)
""")


@case
def early_stopping(folder: Path) -> None:
    detection(folder)
    (folder / 'stop.py').write_text("""_base_ = ['./det.py']
custom_hooks = [
    dict(
        type='EarlyStoppingHook',
        monitor='coco/bbox_mAP',
        rule='greater',
        min_delta=10,
        patience=2,
    )
]
train_cfg = dict(max_epochs=8, val_interval=1)
""")


@case
def longer_schedule(folder: Path) -> None:
    detection(folder)
    for name, epochs in (('short', 3), ('long', 6)):
        (folder / f'{name}.py').write_text(f"""_base_ = ['./det.py']
train_cfg = dict(max_epochs={epochs})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=4),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        begin=0,
        end={epochs},
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
""")


@case
def short_palette(folder: Path) -> None:
    detection(folder)
    star = dict(id=4, name='star')
    for split in ('train', 'val'):
        # first, so that some instances have the last class
        edit(folder, split, lambda content: content['categories'].insert(0, star))
    (folder / 'four.py').write_text(f"""_base_ = ['./det.py']
data = dict(metainfo=dict(classes={('star', *CLASSES)}))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
model = dict(roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)))
""")


@case
def launcher_argument(folder: Path) -> None:
    detection(folder)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path, help='folder in which each case gets a folder')
    parser.add_argument('names', nargs='*', help=f'all, or some of {", ".join(CASES)}')
    arguments = parser.parse_args()
    for case_name in arguments.names or CASES:
        make(case_name, arguments.out / case_name)
        print(arguments.out / case_name)
