_base_ = './_base_/upernet_shapes.py'

model = dict(
    backbone=dict(_base_.convnext.backbone, _delete_=True),
    decode_head=dict(in_channels=_base_.convnext.channels),
    auxiliary_head=dict(in_channels=_base_.convnext.channels[2]),
)
