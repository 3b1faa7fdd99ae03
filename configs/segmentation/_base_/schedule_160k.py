# 160k iterations of AdamW for segmentation. The schedule is Swin's, because GC ViT's is not
# published.
_base_ = [
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
    '../../_base_/adamw.py',
]

max_iters = 160000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
optim_wrapper = dict(
    _base_.adamw,
    _delete_=True,
    optimizer=dict(_base_.adamw.optimizer, lr=6e-5, weight_decay=0.01),
)
# 8 GPUs with 2 images each; --auto-scale-lr scales the learning rate from here
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='mIoU'))
