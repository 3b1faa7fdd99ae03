# Mask R-CNN with a small ConvNeXt on drawn shapes, for docs/comparison.md.
#
# Launch:   python tools/compare.py, or only this training:
#           python tools/train.py configs/comparison/mask-rcnn_convnext_shapes.py
# Hardware: one CPU core, about 5 minutes
# Source:   ours, see _base_/recipe.py
# Result:   docs/comparison.md
_base_ = './_base_/mask_rcnn_shapes.py'

model = dict(
    backbone=dict(_base_.convnext.backbone, _delete_=True),
    neck=dict(in_channels=_base_.convnext.channels),
)
