# GC ViT-T2 on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_t2.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: 32 GPUs, 128 images each; for fewer see docs/classification.md
# Source:   recipe of GC ViT-T with its batch size; this size is not in the paper
# Result:   paper: not reported; model card: top-1 83.7; ours: not trained
_base_ = './gcvit_t.py'

model = dict(backbone=dict(arch='tiny2'))
