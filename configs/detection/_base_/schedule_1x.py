# mmdet's 1x schedule (12 epochs, steps after 8 and 11) with AdamW and mixed precision. Learning
# rate, warm-up and batch size are as published for GC ViT-T's 3x schedule.
_base_ = [
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    '../../_base_/adamw.py',
]

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2500),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[8, 11],
        gamma=0.1,
    ),
]
optim_wrapper = dict(_base_.adamw, _delete_=True, type='AmpOptimWrapper', loss_scale='dynamic')
# 8 GPUs with 2 images each; --auto-scale-lr scales the learning rate from here
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='coco/bbox_mAP'))
