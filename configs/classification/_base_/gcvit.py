# Image classifier with GC ViT. A config adds arch and the head's in_channels.
#
# `image_size` sets the windows and query generators of the published classifiers. Pooling, head,
# label smoothing, mixup, CutMix and initial values are those of mmpretrain's Swin.
_base_ = 'mmpretrain::_base_/models/swin_transformer/tiny_224.py'

model = dict(backbone=dict(_delete_=True, type='mmgcvit.GCViT', image_size=224))
