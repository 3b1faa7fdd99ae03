# COCO instance segmentation with the recipe published for GC ViT-T: 36 epochs, and the multi-scale
# and crop augmentation of DETR and Swin. Differences from the published configs:
#
# - Mixed precision has a dynamic loss scale. Published: a static scale of 512 for Mask R-CNN,
#   float32 for Cascade Mask R-CNN.
# - Position-bias tables have no weight decay. Published for Mask R-CNN: decayed by accident,
#   because the key `rpb` matches no parameter.
# - SyncBN in the heads of Cascade Mask R-CNN has no weight decay. Published: decayed, because the
#   key `norm` does not match `bn`.
# - `norm3` starts from the classifier's norm. Published: from weight 1 and bias 0.
_base_ = ['mmdet::_base_/datasets/coco_instance.py', './schedule_1x.py']

resize = dict(
    type='RandomChoiceResize',
    scales=[(side, 1333) for side in range(480, 801, 32)],
    keep_ratio=True,
)
crop = [
    dict(
        type='RandomChoiceResize',
        scales=[(side, 1333) for side in (400, 500, 600)],
        keep_ratio=True,
    ),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[resize], [*crop, resize]]),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], end=max_epochs, milestones=[27, 33]),
]
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
