# RetinaNet with GC ViT-T on COCO, 1x schedule. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/retinanet_gcvit-t_fpn_1x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's 1x schedule and augmentation, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    './_base_/schedule_1x.py',
    '../_base_/nvidia_weights.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmgcvit.GCViT',
        arch='tiny',
        window_size=24,
        out_indices=(1, 2, 3),  # the neck does not use stride 4
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
