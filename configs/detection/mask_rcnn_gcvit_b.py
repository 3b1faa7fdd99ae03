# Mask R-CNN with GC ViT-B on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask_rcnn_gcvit_b.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   GC ViT-T's published recipe; drop path ours: the size's ImageNet value
# Result:   paper: not reported; ours: not trained
_base_ = ['./_base_/mask_rcnn_gcvit.py', './_base_/coco_3x.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_base.pth.tar',
        ),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
