# DINO with 5 scales and GC ViT-T on COCO, 12 epochs. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/dino-5scale_gcvit-t_8xb2-12e_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe for Swin-L, without weight decay of the norms and
#           bias tables of the backbone
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::dino/dino-5scale_swin-l_8xb2-12e_coco.py',
    '../_base_/gcvit_t.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
