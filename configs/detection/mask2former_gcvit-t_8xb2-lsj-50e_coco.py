# Mask2Former with GC ViT-T on COCO instances, 50 epochs.
#
# Launch:   bash tools/dist_train.sh configs/detection/mask2former_gcvit-t_8xb2-lsj-50e_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe for ResNet-50, without weight decay of norms and bias tables
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '../_base_/gcvit_t.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
