# Short name of cascade-mask-rcnn_gcvit-l_fpn_fsdp-3x_coco.py
_base_ = './cascade-mask-rcnn_gcvit-l_fpn_fsdp-3x_coco.py'
