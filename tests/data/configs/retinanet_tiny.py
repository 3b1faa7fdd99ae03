# The RetinaNet of COCO, small, for tests; its data are below $SHAPES.
_base_ = './mask_rcnn_tiny.py'

channels = 16
model = dict(
    _delete_=True,
    type='RetinaNet',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=_base_.model.backbone,
    neck=dict(
        type='FPN', in_channels=[16, 32, 64], out_channels=channels, start_level=0, num_outs=4
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=3,
        in_channels=channels,
        stacked_convs=1,
        feat_channels=channels,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=2,
            ratios=[0.5, 1.0],
            strides=[4, 8, 16, 32],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    ),
    test_cfg=dict(
        nms_pre=200,
        min_bbox_size=0,
        score_thr=0.02,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=50,
    ),
)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
