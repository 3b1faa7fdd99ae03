# The small Mask R-CNN in shards, as configs/detection/cascade_gcvit_l_fsdp.py.
_base_ = ['./mask_rcnn_tiny.py', '../../../configs/_base_/fsdp.py']
