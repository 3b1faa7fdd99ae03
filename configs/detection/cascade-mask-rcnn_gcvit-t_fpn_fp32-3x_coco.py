# Cascade Mask R-CNN with GC ViT-T on COCO, 3x schedule, in float32.
#
# Launch:   bash tools/dist_train.sh \
#               configs/detection/cascade-mask-rcnn_gcvit-t_fpn_fp32-3x_coco.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   published for GC ViT-T; coco_3x.py lists the differences
# Result:   paper: box AP 51.6, mask AP 44.6; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py'

optim_wrapper = dict(_base_.adamw, _delete_=True)
