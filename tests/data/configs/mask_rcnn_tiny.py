# The quickstart's Mask R-CNN, smaller, for tests; its data are below $SHAPES.
_base_ = ['../../../configs/detection/mask_rcnn_gcvit_shapes.py', './rank_weights.py']

model = dict(
    backbone=dict(arch=dict(embed_dims=16)),
    neck=dict(in_channels=[16, 32, 64]),
    roi_head=dict(bbox_head=dict(fc_out_channels=64)),
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)

data_root = '{{$SHAPES:data/shapes}}/coco/'
scale = (128, 96)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = scale
test_pipeline[1].scale = scale
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=2, dataset=dict(data_root=data_root, pipeline=train_pipeline), **workers
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline), **workers)
test_dataloader = val_dataloader
# recall of boxes of any class: what so short a training reaches
val_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric=['bbox', 'segm', 'proposal'],
)
test_evaluator = val_evaluator

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=max_epochs))
# clipped gradients would differ in rounding between processes and shards
optim_wrapper = dict(optimizer=dict(lr=4e-3), clip_grad=dict(max_norm=35.0))
auto_scale_lr = dict(base_batch_size=8)
