# GC ViT-T with local attention only and Swin's downsampler: table 4, + GC ViT-T Stem.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/ablations/gcvit_t_reparam_stem.py 8
#           on each of 4 nodes, with its NODE_RANK
# Hardware: published for GC ViT-T: 32 A100 GPUs, 128 images each; with fewer, add --auto-scale-lr
# Source:   recipe of GC ViT-T; docs/ablations.md says what is published and what is ours
# Result:   paper: top-1 82.2; ours: not trained
_base_ = '../classification/gcvit_t.py'

model = dict(backbone=dict(type='mmgcvit.GCViTVariant', variant='reparam_stem'))
