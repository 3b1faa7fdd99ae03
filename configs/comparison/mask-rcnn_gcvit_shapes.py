_base_ = './_base_/mask_rcnn_shapes.py'

model = dict(
    backbone=dict(_base_.gcvit.backbone, _delete_=True),
    neck=dict(in_channels=_base_.gcvit.channels),
)
