# Cascade Mask R-CNN with GC ViT-T on COCO 3x.
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade_gcvit_t.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   published for GC ViT-T
# Result:   paper: box AP 51.6, mask AP 44.6; ours: not trained
_base_ = ['./_base_/cascade_mask_rcnn_gcvit.py', './_base_/coco_3x.py']

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
