# The recipe of all backbones and both tasks: batches of 8 images, AdamW, cosine schedule. The
# optimizer's settings are those of configs/detection/mask_rcnn_gcvit_shapes.py, which were chosen
# for GC ViT.
max_iters = 500
recipe = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=50),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
        dict(
            type='CosineAnnealingLR',
            eta_min_ratio=0.01,
            begin=0,
            end=max_iters,
            by_epoch=False,
        ),
    ],
    optim_wrapper=dict(
        _delete_=True,
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(
            norm_decay_mult=0.0,
            custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)},
        ),
        clip_grad=dict(max_norm=10.0),
    ),
    # images are loaded in the training process: one training uses one core
    train_dataloader=dict(
        batch_size=8,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    ),
    val_dataloader=dict(num_workers=0, persistent_workers=False),
    default_hooks=dict(
        logger=dict(interval=25, log_metric_by_epoch=False),
        checkpoint=dict(by_epoch=False, interval=50, max_keep_ckpts=1, save_best=None),
    ),
)
