# A small classifier of mmpretrain; its data, two folders of images, are below $SHAPES.
default_scope = 'mmpretrain'
size = 64
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmgcvit.GCViT',
        arch=dict(
            embed_dims=8,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratio=2,
            layer_scale_init_value=0.5,
        ),
        window_size=2,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1,),
    ),
    data_preprocessor=dict(
        num_classes=2, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
)

resize = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(size, size))]
test_pipeline = [*resize, dict(type='PackInputs')]
tta_pipeline = [
    *resize,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
dataset = dict(
    type='CustomDataset',
    data_root='{{$SHAPES:data/shapes}}/ADEChallengeData2016',
    data_prefix='images',
    pipeline=test_pipeline,
)
loader = dict(num_workers=0, collate_fn=dict(type='default_collate'))
train_dataloader = dict(
    batch_size=4, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=True), **loader
)
val_dataloader = dict(
    batch_size=3, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False), **loader
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
