# Short name of cascade-mask-rcnn_gcvit-s2_fpn_3x_coco.py
_base_ = './cascade-mask-rcnn_gcvit-s2_fpn_3x_coco.py'
