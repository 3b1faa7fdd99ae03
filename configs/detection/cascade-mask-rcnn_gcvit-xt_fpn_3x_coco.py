# Cascade Mask R-CNN with GC ViT-XT on COCO, 3x schedule.
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade-mask-rcnn_gcvit-xt_fpn_3x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe of GC ViT-T; drop path ours: the ImageNet value of the size
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py'

model = dict(
    backbone=dict(arch='xtiny', init_cfg=dict(checkpoint=_base_.nvidia_weights.format('xtiny'))),
)
