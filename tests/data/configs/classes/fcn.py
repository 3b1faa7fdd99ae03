# A small FCN in the pure Python style: every type is a class, there is no default scope.
from mmcv.transforms import LoadImageFromFile, TestTimeAug
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from mmseg.datasets import ADE20KDataset
from mmseg.datasets.transforms import (
    LoadAnnotations,
    PackSegInputs,
    RandomCrop,
    RandomFlip,
    Resize,
)
from mmseg.evaluation import IoUMetric
from mmseg.models import (
    CrossEntropyLoss,
    EncoderDecoder,
    FCNHead,
    SegDataPreProcessor,
    SegTTAModel,
)
from mmseg.visualization import SegLocalVisualizer
from torch.nn import SyncBatchNorm
from torch.optim import SGD

from mmgcvit import GCViT

with read_base():
    from .no_scope import *  # noqa: F403

size = (96, 96)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=size,
    ),
    backbone=dict(
        type=GCViT,
        arch=dict(
            embed_dims=8,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratio=2,
            layer_scale_init_value=0.5,
        ),
        window_size=2,
    ),
    decode_head=dict(
        type=FCNHead,
        in_channels=64,
        in_index=3,
        channels=16,
        num_classes=150,
        norm_cfg=dict(type=SyncBatchNorm),
        loss_decode=dict(type=CrossEntropyLoss),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
tta_model = dict(type=SegTTAModel)

load = dict(type=LoadImageFromFile)
annotate = dict(type=LoadAnnotations, reduce_zero_label=True)
resize = dict(type=Resize, scale=(128, 96), keep_ratio=True)
data = dict(type=ADE20KDataset, data_root='data/shapes/ADEChallengeData2016')
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        data,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            load,
            annotate,
            resize,
            dict(type=RandomCrop, crop_size=size),
            dict(type=PackSegInputs),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        data,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=[load, resize, annotate, dict(type=PackSegInputs)],
    ),
)
test_dataloader = val_dataloader
flips = [dict(type=RandomFlip, prob=0.0), dict(type=RandomFlip, prob=1.0)]
tta_pipeline = [
    load,
    dict(type=TestTimeAug, transforms=[[resize], flips, [annotate], [dict(type=PackSegInputs)]]),
]
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=4)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=AmpOptimWrapper, loss_scale='dynamic', optimizer=dict(type=SGD, lr=0.01))
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=4),
)
visualizer = dict(
    type=SegLocalVisualizer, name='visualizer', vis_backends=[dict(type=LocalVisBackend)]
)
