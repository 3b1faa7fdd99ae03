# Cascade Mask R-CNN with GC ViT-T on a dataset of your own in COCO's format; copy and change it.
#
# Launch:   python tools/draw_shapes.py data/shapes
#           python tools/check_data.py configs/detection/custom_coco.py
#           bash tools/dist_train.sh configs/detection/custom_coco.py 8
# Hardware: 8 GPUs, 2 images each; with fewer add --auto-scale-lr
# Source:   as cascade_gcvit_t.py, which has the schedule and the weights (ImageNet's); to begin
#           from a detector instead: load_from = 'PATH'. The data are the drawn shapes
# Result:   paper: none; ours: not trained
_base_ = './cascade_gcvit_t.py'

data_root = 'data/shapes/coco/'
classes = ('circle', 'rectangle', 'triangle')  # names and order of the file's categories
# other files than COCO's names: ann_file='…' and data_prefix=dict(img='…') in each dataset
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
heads = [dict(head, num_classes=len(classes)) for head in _base_.model.roi_head.bbox_head]
model = dict(roi_head=dict(bbox_head=heads, mask_head=dict(num_classes=len(classes))))
