# AdamW for fine-tuning a pretrained GC ViT, with the learning rate of the COCO recipes.
# Segmentation has its own in segmentation/_base_/schedule_160k.py. Schedules are in
# detection/_base_/ and there. Norms and position-bias tables have no weight decay.
#
# Use it in any config of mmdet or mmseg. `_delete_` removes the inherited optimizer, because AdamW
# does not accept SGD's momentum.
#
#     _base_ = [
#         'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
#         'PATH/TO/mmgcvit/configs/_base_/adamw.py',
#     ]
#     optim_wrapper = dict(_base_.adamw, _delete_=True)
adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)},
    ),
)
