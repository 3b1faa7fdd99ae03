# GC ViT-T on your own images, in folders of classes. Copy this file and change it.
#
#     data/my_images/{train,val}/CLASS/NAME.jpg   the same folders in train and in val
#
# Launch:   python tools/draw_shapes.py data/shape_classes --classes
#           python tools/check_data.py configs/classification/custom_folders.py
#           bash tools/dist_train.sh configs/classification/custom_folders.py 8
# Hardware: 8 GPUs, 32 images each; for fewer GPUs add --auto-scale-lr
# Source:   gcvit_t.py, with a schedule of ours for fine-tuning. To start from a classifier with its
#           head, set load_from = 'PATH'. The data is the shape classes dataset
# Result:   paper: none; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = ['./gcvit_t.py', '../_base_/nvidia_weights.py']

classes = ('circle', 'rectangle', 'triangle')  # the names of the folders, in alphabetical order
data = dict(
    _delete_=True,
    type='CustomDataset',
    data_root='data/shape_classes',
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    batch_size=32,  # per GPU
    dataset=dict(data, data_prefix='train', pipeline=_base_.train_pipeline),
)
val_dataloader = test_dataloader = dict(
    dataset=dict(data, data_prefix='val', pipeline=_base_.test_pipeline)
)
val_evaluator = test_evaluator = dict(topk=(1,))  # at most the number of classes
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint=_base_.nvidia_weights.format('tiny')),
    ),
    head=dict(num_classes=len(classes)),
)
data_preprocessor = dict(num_classes=len(classes))

max_epochs = 30
warmup_epochs = 3
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs, eta_min=5e-7),
]
optim_wrapper = dict(optimizer=dict(lr=5e-5))
auto_scale_lr = dict(base_batch_size=256)
