# Cascade Mask R-CNN with GC ViT-T on your own dataset in COCO format. Copy this file and change it.
#
# Launch:   python tools/draw_shapes.py data/shapes
#           python tools/check_data.py configs/detection/custom_coco.py
#           bash tools/dist_train.sh configs/detection/custom_coco.py 8
# Hardware: 8 GPUs, 2 images each; for fewer GPUs add --auto-scale-lr
# Source:   cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py, with a warm-up of one epoch. To start from a
#           detector instead of ImageNet weights, set load_from = 'PATH'. The data is the shapes
#           dataset
# Result:   paper: none; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './cascade-mask-rcnn_gcvit-t_fpn_3x_coco.py'

data_root = 'data/shapes/coco/'
classes = ('circle', 'rectangle', 'triangle')  # the file's categories, by name and in its order
# if file names differ from COCO's, set ann_file='…' and data_prefix=dict(img='…') in each dataset
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
heads = [dict(head, num_classes=len(classes)) for head in _base_.model.roi_head.bbox_head]
model = dict(roi_head=dict(bbox_head=heads, mask_head=dict(num_classes=len(classes))))

# COCO's warm-up of 2500 iterations may be longer than the complete training on a small dataset
param_scheduler = [
    dict(_base_.param_scheduler[0], by_epoch=True, end=1, convert_to_iter_based=True),
    _base_.param_scheduler[1],
]
