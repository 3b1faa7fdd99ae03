# GC ViT-B on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_b.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: published: 32 A100 GPUs, 32 images each; for fewer see docs/classification.md
# Source:   recipe of the paper, with the batch size of this size
# Result:   paper: top-1 84.4; model card: top-1 85.0; ours: not trained
_base_ = './gcvit_t.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=32)  # per GPU
auto_scale_lr = dict(base_batch_size=1024)
