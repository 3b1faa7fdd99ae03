# Mask R-CNN with GC ViT-T on COCO, 3x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask-rcnn_gcvit-t_fpn_3x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   published for GC ViT-T, in mixed precision; coco_3x.py lists the differences
# Result:   paper: box AP 47.9, mask AP 43.2; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = ['./_base_/mask_rcnn_gcvit.py', './_base_/coco_3x.py', '../_base_/nvidia_weights.py']

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
