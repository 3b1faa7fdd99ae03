# Swin-T, mmpretrain's own, with the recipe of GC ViT-T: table 4, Swin-T.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/ablations/swin_t.py 8
#           on each of 4 nodes, with its NODE_RANK
# Hardware: published for GC ViT-T: 32 A100 GPUs, 128 images each; with fewer, add --auto-scale-lr
# Source:   recipe of GC ViT-T; docs/ablations.md says what is published and what is ours
# Result:   paper: top-1 81.3; ours: not trained
_base_ = '../classification/gcvit_t.py'

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', arch='tiny', drop_path_rate=0.2),
    head=dict(in_channels=768),
)
