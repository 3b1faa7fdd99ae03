# GC ViT-L on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_l.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: published: 32 A100 GPUs, 32 images each; for fewer see docs/classification.md
# Source:   recipe of the paper, with the batch size of this size
# Result:   paper: top-1 84.6; model card: top-1 85.7; ours: not trained
_base_ = './gcvit_t.py'

model = dict(backbone=dict(arch='large'), head=dict(in_channels=1536))
train_dataloader = dict(batch_size=32)  # per GPU
auto_scale_lr = dict(base_batch_size=1024)
