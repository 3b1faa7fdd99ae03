_base_ = './_base_/mask_rcnn_shapes.py'

model = dict(
    backbone=dict(_base_.convnext.backbone, _delete_=True),
    neck=dict(in_channels=_base_.convnext.channels),
)
