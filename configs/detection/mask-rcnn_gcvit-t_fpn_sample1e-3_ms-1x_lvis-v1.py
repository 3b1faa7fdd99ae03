# Mask R-CNN with GC ViT-T on LVIS v1, 1x schedule.
#
# Launch:   bash tools/dist_train.sh \
#               configs/detection/mask-rcnn_gcvit-t_fpn_sample1e-3_ms-1x_lvis-v1.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   ours: mmdet's recipe, with the optimizer published for GC ViT-T
# Result:   paper: not reported; ours: not trained
# Requires: pip install git+https://github.com/lvis-dataset/lvis-api.git
#           (lvis 0.5.3 on PyPI does not work with NumPy 1.24 and later)
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
    '../_base_/gcvit_t.py',
    '../_base_/adamw.py',
]

model = dict(
    backbone=dict(_base_.gcvit_t, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(_base_.adamw, _delete_=True)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='lvis/segm_AP', rule='greater'))
