# Deformable DETR with GC ViT-T on COCO, 50 epochs. Boxes only.
#
# Launch:   NNODES=2 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/detection/deformable-detr_gcvit-t_16xb2-50e_coco.py 8    (on both nodes)
# Hardware: 16 GPUs, 2 images each; for fewer GPUs add --auto-scale-lr
# Source:   ours: mmdet's recipe for ResNet-50, without weight decay of the norms and
#           bias tables of the backbone
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../_base_/gcvit_t.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
