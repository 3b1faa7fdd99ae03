# Mask R-CNN with GC ViT-T on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask_rcnn_gcvit_t.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   published for GC ViT-T
# Result:   paper: box AP 47.9, mask AP 43.2; ours: not trained
_base_ = ['./_base_/mask_rcnn_gcvit.py', './_base_/coco_3x.py']

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_tiny.pth.tar',
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
