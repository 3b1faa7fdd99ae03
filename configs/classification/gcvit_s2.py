# GC ViT-S2 on ImageNet-1K, 224x224, 300 epochs from scratch.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_s2.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: 32 GPUs, 32 images each; for fewer see docs/classification.md
# Source:   recipe of GC ViT-S with its batch size; this size is not in the paper
# Result:   paper: not reported; model card: top-1 84.8; ours: not trained
_base_ = './gcvit_t.py'

model = dict(backbone=dict(arch='small2'), head=dict(in_channels=768))
train_dataloader = dict(batch_size=32)  # per GPU
auto_scale_lr = dict(base_batch_size=1024)
