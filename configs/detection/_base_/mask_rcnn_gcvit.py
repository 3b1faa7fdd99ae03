# Mask R-CNN with GC ViT and an FPN. A config adds arch, init_cfg and the neck's in_channels.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(backbone=dict(_delete_=True, type='mmgcvit.GCViT', window_size=24))
