# Cascade Mask R-CNN with GC ViT-S on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade_gcvit_s.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   GC ViT-T's published recipe; drop path ours: the size's ImageNet value
# Result:   paper: box AP 52.4, mask AP 45.4; ours: not trained
_base_ = ['./_base_/cascade_mask_rcnn_gcvit.py', './_base_/coco_3x.py']

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_small.pth.tar',
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
