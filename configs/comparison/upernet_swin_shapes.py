# UPerNet with a small Swin on drawn shapes, for docs/comparison.md.
#
# Launch:   python tools/compare.py, or only this training:
#           python tools/train.py configs/comparison/upernet_swin_shapes.py
# Hardware: one CPU core, about 5 minutes
# Source:   ours, see _base_/recipe.py
# Result:   docs/comparison.md
_base_ = './_base_/upernet_shapes.py'

model = dict(
    backbone=dict(_base_.swin.backbone, _delete_=True),
    decode_head=dict(in_channels=_base_.swin.channels),
    auxiliary_head=dict(in_channels=_base_.swin.channels[2]),
)
