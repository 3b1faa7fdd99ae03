# Faster R-CNN with GC ViT-T on COCO, 1x schedule. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/faster-rcnn_gcvit-t_fpn_1x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    '../_base_/gcvit_t.py',
    '../_base_/adamw.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(_base_.adamw, _delete_=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
