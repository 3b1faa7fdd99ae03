# Faster R-CNN with GC ViT-T on Pascal VOC 2007 and 2012, 1x schedule. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/faster-rcnn_gcvit-t_fpn_1x_voc0712.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe, with the optimizer published for GC ViT-T and a warm-up
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    '../_base_/gcvit_t.py',
    '../_base_/adamw.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(_base_.adamw, _delete_=True)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    *_base_.param_scheduler,
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='pascal_voc/mAP'))
