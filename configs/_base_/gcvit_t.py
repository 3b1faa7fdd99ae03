# GC ViT-T with ImageNet-1K weights, for configs that replace the backbone of another config:
#
#     _base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', 'PATH/TO/mmgcvit/configs/_base_/gcvit_t.py']
#     model = dict(
#         backbone=dict(_base_.gcvit_t, _delete_=True, out_indices=(1, 2, 3)),
#         neck=dict(in_channels=[128, 256, 512], start_level=0),
#     )
_base_ = './nvidia_weights.py'

gcvit_t = dict(
    type='mmgcvit.GCViT',
    arch='tiny',
    window_size=24,
    init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
)
