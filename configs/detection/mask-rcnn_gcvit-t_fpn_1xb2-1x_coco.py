# Mask R-CNN with GC ViT-T on COCO, 1x schedule, on a single GPU.
#
# Launch:   python tools/train.py configs/detection/mask-rcnn_gcvit-t_fpn_1xb2-1x_coco.py
# Hardware: 1 GPU, 2 images
# Source:   mask-rcnn_gcvit-t_fpn_1x_coco.py, scaled linearly (ours): an eighth of the batch size
#           and of the learning rate, 8 times as many warm-up iterations
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './mask-rcnn_gcvit-t_fpn_1x_coco.py'

gpus = 8  # of the inherited config
optim_wrapper = dict(optimizer=dict(lr=_base_.optim_wrapper.optimizer.lr / gpus))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=_base_.param_scheduler[0].end * gpus),
    _base_.param_scheduler[1],
]
auto_scale_lr = dict(base_batch_size=_base_.auto_scale_lr.base_batch_size // gpus)
