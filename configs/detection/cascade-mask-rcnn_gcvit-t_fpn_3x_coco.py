# Cascade Mask R-CNN with GC ViT-T on COCO, 3x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   published for GC ViT-T, in float32; mixed precision is ours; coco_3x.py lists the
#           other differences
# Result:   paper: box AP 51.6, mask AP 44.6; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    './_base_/cascade_mask_rcnn_gcvit.py',
    './_base_/coco_3x.py',
    '../_base_/nvidia_weights.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
