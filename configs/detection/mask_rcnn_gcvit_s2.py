# Mask R-CNN with GC ViT-S2 on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask_rcnn_gcvit_s2.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   GC ViT-T's published recipe; drop path ours: the size's ImageNet value
# Result:   paper: not reported; ours: not trained
_base_ = ['./_base_/mask_rcnn_gcvit.py', './_base_/coco_3x.py']

model = dict(
    backbone=dict(
        arch='small2',
        drop_path_rate=0.35,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_small2.pth.tar',
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
