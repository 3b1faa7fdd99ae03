# SegFormer's head with GC ViT-T on ADE20K, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh configs/segmentation/segformer_gcvit-t_160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's SegFormer, whose head learns 10 times as fast as the backbone;
#           window and weight decay of upernet_gcvit-t_160k_ade20k-512x512.py
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmseg::_base_/models/segformer_mit-b0.py',
    './_base_/ade20k_160k.py',
    '../_base_/gcvit_t.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_base_.gcvit_t, _delete_=True),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=150),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'decode_head': dict(lr_mult=10.0)}))
