# UPerNet with a small GC ViT on drawn shapes, for docs/comparison.md.
#
# Launch:   python tools/compare.py, or only this training:
#           python tools/train.py configs/comparison/upernet_gcvit_shapes.py
# Hardware: one CPU core, about 5 minutes
# Source:   ours, see _base_/recipe.py
# Result:   docs/comparison.md
_base_ = './_base_/upernet_shapes.py'

model = dict(
    backbone=dict(_base_.gcvit.backbone, _delete_=True),
    decode_head=dict(in_channels=_base_.gcvit.channels),
    auxiliary_head=dict(in_channels=_base_.gcvit.channels[2]),
)
