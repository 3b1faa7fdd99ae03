# UPerNet with GC ViT-B on ADE20K, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh configs/segmentation/upernet_gcvit-b_160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   crop size, batch size and weights published; window 24 inferred from published FLOPs;
#           schedule ours: Swin's; drop path ours: the ImageNet value of the size
# Result:   paper: mIoU 49.0; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './upernet_gcvit-t_160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='base', init_cfg=dict(checkpoint=_base_.nvidia_weights.format('base'))),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
