# GC ViT-XXT on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_xxt.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: published: 32 A100 GPUs, 128 images each; for fewer see docs/classification.md
# Source:   recipe of the paper
# Result:   paper: top-1 79.8; model card: top-1 79.9; ours: not trained
_base_ = './gcvit_t.py'

model = dict(backbone=dict(arch='xxtiny'))
