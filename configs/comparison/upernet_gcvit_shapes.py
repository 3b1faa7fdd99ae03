_base_ = './_base_/upernet_shapes.py'

model = dict(
    backbone=dict(_base_.gcvit.backbone, _delete_=True),
    decode_head=dict(in_channels=_base_.gcvit.channels),
    auxiliary_head=dict(in_channels=_base_.gcvit.channels[2]),
)
