# GC ViT-T with convolution and max pooling as downsampler: table 5.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/ablations/gcvit_t_conv_max_pool.py 8
#           on each of 4 nodes, with its NODE_RANK
# Hardware: published for GC ViT-T: 32 A100 GPUs, 128 images each; with fewer, add --auto-scale-lr
# Source:   recipe of GC ViT-T; docs/ablations.md says what is published and what is ours
# Result:   paper: top-1 82.7; ours: not trained
_base_ = '../classification/gcvit_t.py'

model = dict(backbone=dict(type='mmgcvit.GCViTVariant', variant='conv_max_pool'))
