# UPerNet on drawn shapes. A config adds a backbone.
_base_ = [
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    './backbones.py',
    './recipe.py',
]

# ADE20K's names for background, circle, rectangle and triangle
classes = ('wall', 'ball', 'box', 'tent')
num_classes = len(classes)
channels = 64
norm_cfg = dict(type='GN', num_groups=8)  # as in the detector: nothing is pretrained
model = dict(
    # pads to the largest image of a batch, as mmdet does
    data_preprocessor=dict(size_divisor=32),
    decode_head=dict(
        channels=channels,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=dict(avg_non_ignore=True),  # the padding is ignored
    ),
    auxiliary_head=dict(
        channels=channels,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=dict(avg_non_ignore=True),
    ),
)

data_root = 'data/shapes/ADEChallengeData2016/'
metainfo = dict(
    classes=classes, palette=[(120, 120, 120), (220, 20, 60), (0, 120, 220), (0, 160, 80)]
)
scale = (160, 128)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

recipe = _base_.recipe
train_cfg = recipe.train_cfg
param_scheduler = recipe.param_scheduler
optim_wrapper = recipe.optim_wrapper
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
    **recipe.train_dataloader,
)
val_dataloader = test_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline),
    batch_size=1,  # mmseg's test images have to be of one size within a batch
    **recipe.val_dataloader,
)
default_hooks = recipe.default_hooks
randomness = dict(seed=0)
