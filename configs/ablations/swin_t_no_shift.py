# Swin-T without window shifting: table 4, Swin-T w/o Window Shifting.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/ablations/swin_t_no_shift.py 8
#           on each of 4 nodes, with its NODE_RANK
# Hardware: published for GC ViT-T: 32 A100 GPUs, 128 images each; with fewer, add --auto-scale-lr
# Source:   recipe of GC ViT-T; docs/ablations.md says what is published and what is ours
# Result:   paper: top-1 80.2; ours: not trained
_base_ = './swin_t.py'

model = dict(backbone=dict(stage_cfgs=dict(block_cfgs=dict(shift=False))))
