# UPerNet with GC ViT-T on your own segmentation dataset. Copy this file and change it.
#
#     data/my_dataset/images/{training,validation}/NAME.jpg
#     data/my_dataset/annotations/{training,validation}/NAME.png  one channel; a value is a class,
#                                                                 counted from 0; 255 is ignored
#
# Launch:   python tools/check_data.py configs/segmentation/custom_dataset.py
#           bash tools/dist_train.sh configs/segmentation/custom_dataset.py 8
# Hardware: 8 GPUs, 2 images each; for fewer GPUs add --auto-scale-lr
# Source:   upernet_gcvit-t_160k_ade20k-512x512.py, with a warm-up of 1 % of the iterations. To
#           start from a segmentor instead of ImageNet weights, set load_from = 'PATH'
# Result:   paper: none; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './upernet_gcvit-t_160k_ade20k-512x512.py'

classes = ('background', 'circle', 'rectangle', 'triangle')  # label values 0, 1, 2, 3
# for other file names set img_suffix='.png'; if 0 is to be ignored and classes start from 1, set
# reduce_zero_label=True
data = dict(type='BaseSegDataset', data_root='data/my_dataset', metainfo=dict(classes=classes))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
head = dict(num_classes=len(classes))
model = dict(decode_head=head, auxiliary_head=head)

max_iters = 160000
warmup_iters = max_iters // 100
val_interval = max_iters // 10
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_iters),
    dict(_base_.param_scheduler[1], begin=warmup_iters, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=val_interval))
