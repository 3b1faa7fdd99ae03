# UPerNet with GC ViT. A config adds arch, init_cfg and the heads' in_channels.
_base_ = 'mmseg::_base_/models/upernet_swin.py'

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', window_size=24),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)
