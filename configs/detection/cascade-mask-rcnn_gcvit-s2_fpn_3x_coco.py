# Cascade Mask R-CNN with GC ViT-S2 on COCO, 3x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade-mask-rcnn_gcvit-s2_fpn_3x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe of GC ViT-T; drop path ours: the ImageNet value of the size
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py'

model = dict(
    backbone=dict(arch='small2', init_cfg=dict(checkpoint=_base_.nvidia_weights.format('small2'))),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
