# UPerNet with GC ViT-S2 on ADE20K 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh configs/segmentation/upernet_gcvit_s2.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   window, crop, batch and weights published; schedule ours: Swin's
# Result:   paper: not reported; ours: not trained
_base_ = ['./_base_/upernet_gcvit.py', './_base_/ade20k_160k.py']

model = dict(
    backbone=dict(
        arch='small2',
        drop_path_rate=0.35,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_small2.pth.tar',
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
