# The UPerNet of ADE20K, small, for tests; its data are below $SHAPES.
_base_ = [
    '../../../configs/segmentation/_base_/upernet_gcvit.py',
    '../../../configs/segmentation/_base_/ade20k_160k.py',
    './rank_weights.py',
]

crop_size = (96, 96)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=dict(
            embed_dims=8,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
            mlp_ratio=2,
            layer_scale_init_value=0.5,
        ),
        window_size=8,
    ),
    decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
    auxiliary_head=dict(in_channels=32, channels=16),
)

data_root = '{{$SHAPES:data/shapes}}/ADEChallengeData2016'
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (192, 96)
train_pipeline[2].ratio_range = (1.0, 2.0)  # no crop is padded, so that losses compare
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (192, 96)
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline), **workers)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline), **workers)
test_dataloader = val_dataloader
img_ratios = [0.25, 0.5]
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale_factor=ratio, keep_ratio=True) for ratio in img_ratios
]

max_iters = 24
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
optim_wrapper = dict(optimizer=dict(lr=4e-3))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, interval=max_iters))
