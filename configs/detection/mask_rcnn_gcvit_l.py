# Mask R-CNN with GC ViT-L on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask_rcnn_gcvit_l.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   GC ViT-T's published recipe; drop path ours: the size's ImageNet value
# Result:   paper: not reported; ours: not trained
_base_ = ['./_base_/mask_rcnn_gcvit.py', './_base_/coco_3x.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.5,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_large.pth.tar',
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
