# A small Mask R-CNN in mmdet's pure Python style: every type is a class, there is no default scope.
from mmcv.ops import RoIAlign, nms
from mmdet.models import (
    FPN,
    DetDataPreprocessor,
    FCNMaskHead,
    MaskRCNN,
    RPNHead,
    Shared2FCBBoxHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.task_modules import (
    AnchorGenerator,
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
    RandomSampler,
)
from mmengine.config import read_base
from torch.nn import SyncBatchNorm

from mmgcvit import GCViT

with read_base():
    from .coco import *  # noqa: F403

channels = 32
strides = [4, 8, 16]

boxes = dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4)
cross_entropy = dict(type=CrossEntropyLoss)
l1 = dict(type=L1Loss)
roi_extractor = dict(type=SingleRoIExtractor, out_channels=channels, featmap_strides=strides)
sampler = dict(type=RandomSampler, neg_pos_ub=-1)
matching = dict(type=MaxIoUAssigner, ignore_iof_thr=-1)
settings = dict(pos_weight=-1, debug=False)
proposals = dict(
    nms_pre=200, max_per_img=60, min_bbox_size=0, nms=dict(type=nms, iou_threshold=0.7)
)
model = dict(
    type=MaskRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type=GCViT,
        arch=dict(
            embed_dims=16,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 4, 8),
            mlp_ratio=2,
            layer_scale_init_value=0.5,
        ),
        window_size=8,
        out_indices=(0, 1, 2),
    ),
    neck=dict(
        type=FPN,
        in_channels=[16, 32, 64],
        out_channels=channels,
        num_outs=4,
        norm_cfg=dict(type=SyncBatchNorm),
    ),
    rpn_head=dict(
        type=RPNHead,
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            type=AnchorGenerator, scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32]
        ),
        bbox_coder=dict(boxes, target_stds=[1.0] * 4),
        loss_cls=dict(cross_entropy, use_sigmoid=True),
        loss_bbox=l1,
    ),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            roi_extractor, roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0)
        ),
        bbox_head=dict(
            type=Shared2FCBBoxHead,
            in_channels=channels,
            fc_out_channels=64,
            roi_feat_size=7,
            num_classes=3,
            bbox_coder=dict(boxes, target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=cross_entropy,
            loss_bbox=l1,
        ),
        mask_roi_extractor=dict(
            roi_extractor, roi_layer=dict(type=RoIAlign, output_size=14, sampling_ratio=0)
        ),
        mask_head=dict(
            type=FCNMaskHead,
            num_convs=1,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=3,
            loss_mask=dict(cross_entropy, use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            settings,
            assigner=dict(matching, pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(sampler, num=64, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
        ),
        rpn_proposal=proposals,
        rcnn=dict(
            settings,
            assigner=dict(matching, pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(sampler, num=64, pos_fraction=0.25, add_gt_as_proposals=True),
            mask_size=28,
        ),
    ),
    test_cfg=dict(
        rpn=proposals,
        rcnn=dict(
            score_thr=0.0,
            nms=dict(type=nms, iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)
