# Mask R-CNN with GC ViT-T on COCO, 1x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask-rcnn_gcvit-t_fpn_1x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's 1x schedule and augmentation, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    './_base_/mask_rcnn_gcvit.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './_base_/schedule_1x.py',
    '../_base_/nvidia_weights.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
