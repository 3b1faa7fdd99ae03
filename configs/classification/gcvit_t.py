# GC ViT-T on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_t.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: published: 32 A100 GPUs, 128 images each; for fewer see docs/classification.md
# Source:   recipe of the paper; imagenet_300e.py in the bases lists what is published and what is
#           ours
# Result:   paper: top-1 83.4; model card: top-1 83.5; ours: not trained
_base_ = ['./_base_/gcvit.py', './_base_/imagenet_300e.py']

model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=512))
