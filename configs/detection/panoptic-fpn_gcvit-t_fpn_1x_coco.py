# Panoptic FPN with GC ViT-T on COCO panoptic, 1x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/panoptic-fpn_gcvit-t_fpn_1x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    '../_base_/gcvit_t.py',
    '../_base_/adamw.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# mmdet's transform and metric need panopticapi, which is not on PyPI; these do not
load = 'mmgcvit.LoadPanopticAnnotations'
train_pipeline = [
    dict(step, type=load) if step.type == 'LoadPanopticAnnotations' else step
    for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, type=load) if step.type == 'LoadPanopticAnnotations' else step
    for step in _base_.test_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
val_evaluator = test_evaluator = dict(type='mmgcvit.PanopticMetric')
optim_wrapper = dict(_base_.adamw, _delete_=True)
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3, save_best='coco_panoptic/PQ', rule='greater')
)
