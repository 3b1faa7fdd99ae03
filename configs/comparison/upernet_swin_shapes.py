_base_ = './_base_/upernet_shapes.py'

model = dict(
    backbone=dict(_base_.swin.backbone, _delete_=True),
    decode_head=dict(in_channels=_base_.swin.channels),
    auxiliary_head=dict(in_channels=_base_.swin.channels[2]),
)
