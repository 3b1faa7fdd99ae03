# Cascade Mask R-CNN with GC ViT-L on COCO 3x, in shards on the GPUs (FSDP).
#
# Launch:   bash tools/dist_train.sh configs/detection/cascade_gcvit_l_fsdp.py 8
#           python tools/test.py configs/detection/cascade_gcvit_l_fsdp.py CHECKPOINT
# Hardware: 8 GPUs, 2 images each
# Source:   as cascade_gcvit_l.py
# Result:   paper: not reported; ours: not trained
_base_ = ['./cascade_gcvit_l.py', '../_base_/fsdp.py']
