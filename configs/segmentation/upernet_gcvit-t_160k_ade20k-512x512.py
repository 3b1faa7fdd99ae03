# UPerNet with GC ViT-T on ADE20K, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh configs/segmentation/upernet_gcvit-t_160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   crop size, batch size and weights published; window 24 inferred from published FLOPs;
#           schedule ours: Swin's; drop path ours: the ImageNet value of the size
# Result:   paper: mIoU 47.0; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    './_base_/upernet_gcvit.py',
    './_base_/ade20k_160k.py',
    '../_base_/nvidia_weights.py',
]

model = dict(
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
