# Semantic FPN with GC ViT-T on ADE20K, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh configs/segmentation/fpn_gcvit-t_160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's Semantic FPN; window and schedule of
#           upernet_gcvit-t_160k_ade20k-512x512.py
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    './_base_/ade20k_160k.py',
    '../_base_/gcvit_t.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(num_classes=150),
)
