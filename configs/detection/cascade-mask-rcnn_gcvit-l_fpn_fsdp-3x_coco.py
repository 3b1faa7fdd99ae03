# Cascade Mask R-CNN with GC ViT-L on COCO, 3x schedule, sharded over the GPUs (FSDP).
#
# Launch:   bash tools/dist_train.sh \
#               configs/detection/cascade-mask-rcnn_gcvit-l_fpn_fsdp-3x_coco.py 8
#           bash tools/dist_test.sh \
#               configs/detection/cascade-mask-rcnn_gcvit-l_fpn_fsdp-3x_coco.py CHECKPOINT 8
# Hardware: 8 GPUs, 2 images each
# Source:   cascade-mask-rcnn_gcvit-l_fpn_3x_coco.py; sharding is ours
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = ['./cascade-mask-rcnn_gcvit-l_fpn_3x_coco.py', '../_base_/fsdp.py']
