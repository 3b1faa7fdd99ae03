# CondInst with GC ViT-T on COCO, 90k iterations. Boxes and masks, one stage.
#
# Launch:   bash tools/dist_train.sh configs/detection/condinst_gcvit-t_fpn_ms-poly-90k_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    '../_base_/gcvit_t.py',
    '../_base_/adamw.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
# a batch without objects gives the mask head no gradient
find_unused_parameters = True
optim_wrapper = dict(_base_.adamw, _delete_=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/segm_mAP'))
