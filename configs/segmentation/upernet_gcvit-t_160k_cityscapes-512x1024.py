# UPerNet with GC ViT-T on Cityscapes, crops of 512x1024, 160k iterations.
#
# Launch:   bash tools/dist_train.sh \
#               configs/segmentation/upernet_gcvit-t_160k_cityscapes-512x1024.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's data pipeline of Cityscapes; model, window and schedule of
#           upernet_gcvit-t_160k_ade20k-512x512.py
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    './_base_/upernet_gcvit.py',
    'mmseg::_base_/datasets/cityscapes.py',
    './_base_/schedule_160k.py',
    '../_base_/gcvit_t.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.gcvit_t,
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=19),
    auxiliary_head=dict(in_channels=256, num_classes=19),
)
