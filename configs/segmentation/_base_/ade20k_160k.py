# ADE20K semantic segmentation: crops of 512x512, 160k iterations.
_base_ = ['mmseg::_base_/datasets/ade20k.py', './schedule_160k.py']

# mmseg's pipelines ignore label 0 in every dataset. Here the dataset decides: ADE20K still ignores
# label 0, and other datasets can use the same pipelines.
load = dict(type='LoadAnnotations')
train_pipeline = [load if step.type == load['type'] else step for step in _base_.train_pipeline]
test_pipeline = [load if step.type == load['type'] else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=2, dataset=dict(pipeline=train_pipeline))  # per GPU
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
