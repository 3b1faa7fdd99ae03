# Mask2Former with GC ViT-T on ADE20K, crops of 512x512, 160k iterations. Also needs mmdet.
#
# Launch:   bash tools/dist_train.sh \
#               configs/segmentation/mask2former_gcvit-t_8xb2-160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's for ResNet-50, without weight decay of norms and bias tables
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '../_base_/gcvit_t.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
