# DINO with 4 scales and GC ViT-B on COCO, 12 epochs. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/dino-4scale_gcvit-b_8xb2-12e_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe of GC ViT-T; drop path ours: the ImageNet value of the size
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './dino-4scale_gcvit-t_8xb2-12e_coco.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=_base_.nvidia_weights.format('base'))),
    neck=dict(in_channels=[256, 512, 1024]),
)
