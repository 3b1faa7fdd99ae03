# Old name of mask-rcnn_gcvit-t_fpn_3x_coco.py
_base_ = './mask-rcnn_gcvit-t_fpn_3x_coco.py'
_deprecation_ = dict(expected='configs/detection/mask-rcnn_gcvit-t_fpn_3x_coco.py')
