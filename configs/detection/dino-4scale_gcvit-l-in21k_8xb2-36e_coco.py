# DINO with 4 scales and GC ViT-L on COCO, 36 epochs, from ImageNet-21K weights. Boxes only.
#
# Launch:   bash tools/dist_train.sh configs/detection/dino-4scale_gcvit-l-in21k_8xb2-36e_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   size and head published; everything else ours: mmdet's recipe for ResNet-50, weights,
#           window, and drop path (that of the classifier with these weights)
# Result:   paper: box AP 58.3 in the version of ICML 2023; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './dino-4scale_gcvit-t_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.1,
        # the third stage, which has the most blocks, was also trained with windows of 24 tokens
        init_cfg=dict(checkpoint=_base_.nvidia_weights_21k.format(384)),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [dict(_base_.param_scheduler[0], end=max_epochs, milestones=[30])]
