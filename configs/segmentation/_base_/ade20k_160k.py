# ADE20K semantic segmentation, crops of 512x512, 160k iterations, AdamW: the schedule is Swin's,
# as GC ViT's was not published.
_base_ = [
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]

# mmseg's pipelines say that label 0 is ignored; here the dataset alone says so, as ADE20K's does,
# and a dataset of another kind can take its place
load = dict(type='LoadAnnotations')
train_pipeline = [load if step.type == load['type'] else step for step in _base_.train_pipeline]
test_pipeline = [load if step.type == load['type'] else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))  # a GPU, of 8
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

max_iters = 160000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=max_iters),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)},
    ),
)
# of 8 GPUs with 2 images each; --auto-scale-lr takes it
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='mIoU'))
