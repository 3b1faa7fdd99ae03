# The Cascade Mask R-CNN of COCO 3x, small, for tests; its data are below $SHAPES.
_base_ = [
    '../../../configs/detection/_base_/cascade_mask_rcnn_gcvit.py',
    '../../../configs/detection/_base_/coco_3x.py',
    './rank_weights.py',
]

channels = 32
classes = ('circle', 'rectangle', 'triangle')
bbox_heads = [
    dict(
        head,
        num_shared_convs=1,
        in_channels=channels,
        conv_out_channels=channels,
        fc_out_channels=64,
        num_classes=len(classes),
    )
    for head in _base_.model.roi_head.bbox_head
]
model = dict(
    backbone=dict(
        arch=dict(
            embed_dims=16,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8),
            mlp_ratio=2,
            layer_scale_init_value=0.5,
        ),
        window_size=8,
    ),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=bbox_heads,
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(
            num_convs=1,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=len(classes),
        ),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=60)),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=60)),
)

data_root = '{{$SHAPES:data/shapes}}/coco/'
metainfo = dict(classes=classes)
scale = (128, 96)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_pipeline = _base_.train_pipeline
first, second = train_pipeline[3].transforms
first[0].scales = second[2].scales = [(80, 128), (96, 128)]
second[0].scales = [(64, 128), (80, 128)]
second[1].crop_size = (48, 96)
workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline), **workers
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline), **workers
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 3
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None, interval=max_epochs))
