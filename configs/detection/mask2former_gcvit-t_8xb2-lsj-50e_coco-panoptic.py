# Mask2Former with GC ViT-T on COCO panoptic, 50 epochs.
#
# Launch:   bash tools/dist_train.sh \
#               configs/detection/mask2former_gcvit-t_8xb2-lsj-50e_coco-panoptic.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe for ResNet-50, without weight decay of norms and bias tables
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    '../_base_/gcvit_t.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
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
val_evaluator = test_evaluator = [
    dict(_base_.val_evaluator[0], type='mmgcvit.PanopticMetric'),
    _base_.val_evaluator[1],
]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ', rule='greater'))
