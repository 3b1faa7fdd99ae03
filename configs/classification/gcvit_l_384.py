# GC ViT-L on ImageNet-1K, 384x384, 30 epochs from ImageNet-21K weights.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_l_384.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: 32 GPUs, 16 images each; for fewer see docs/classification.md
# Source:   windows, weights and drop path 0.1 published; recipe ours
# Result:   paper: not reported; model card: top-1 87.4; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = ['./_base_/gcvit.py', './_base_/finetune_30e.py', '../_base_/nvidia_weights.py']

model = dict(
    backbone=dict(
        arch='large',
        image_size=384,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights_21k.format(224)),
    ),
    head=dict(in_channels=1536),
    train_cfg=None,  # no mixup or CutMix
)
