# UPerNet with GC ViT-T on COCO-Stuff 164k, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh \
#               configs/segmentation/upernet_gcvit-t_160k_coco-stuff164k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's data pipeline of COCO-Stuff; model, window and schedule of
#           upernet_gcvit-t_160k_ade20k-512x512.py
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    './_base_/upernet_gcvit.py',
    'mmseg::_base_/datasets/coco-stuff164k.py',
    './_base_/schedule_160k.py',
    '../_base_/gcvit_t.py',
]

model = dict(
    backbone=_base_.gcvit_t,
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=171),
    auxiliary_head=dict(in_channels=256, num_classes=171),
)
train_dataloader = dict(batch_size=2)  # per GPU
