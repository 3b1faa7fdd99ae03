# Cascade Mask R-CNN with GC ViT and an FPN. A config adds arch, init_cfg and the neck's
# in_channels.
#
# The published box heads differ from mmdet's: four convolutions, one box for each class, GIoU loss
# on decoded boxes.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

bbox_heads = [
    dict(
        head,
        type='ConvFCBBoxHead',
        num_shared_convs=4,
        num_shared_fcs=1,
        conv_out_channels=256,
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
    )
    for head in _base_.model.roi_head.bbox_head
]
model = dict(
    backbone=dict(_delete_=True, type='mmgcvit.GCViT', window_size=24),
    roi_head=dict(bbox_head=bbox_heads),
)
