# Fine-tuning of a pretrained classifier on ImageNet-1K for 30 epochs. The recipe is ours, because
# none is published: a low learning rate, almost no weight decay, and the images of mmpretrain's
# Swin at 384x384: random crop and flip for training, the whole image for tests.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_384.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
]

max_epochs = 30
warmup_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_epochs),
    dict(_base_.param_scheduler[1], begin=warmup_epochs, end=max_epochs, eta_min=1e-7),
]
train_dataloader = dict(batch_size=16)  # per GPU
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=2e-5, weight_decay=1e-8),
    clip_grad=dict(max_norm=5.0),
)
# 32 GPUs with 16 images each; --auto-scale-lr scales the learning rate from here
auto_scale_lr = dict(base_batch_size=512)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
