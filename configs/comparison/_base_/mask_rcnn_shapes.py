# Mask R-CNN on drawn shapes. A config adds a backbone.
_base_ = ['../../detection/mask_rcnn_gcvit_shapes.py', './backbones.py', './recipe.py']

recipe = _base_.recipe
train_cfg = recipe.train_cfg
param_scheduler = recipe.param_scheduler
optim_wrapper = recipe.optim_wrapper
train_dataloader = dict(batch_sampler=None, **recipe.train_dataloader)
val_dataloader = test_dataloader = recipe.val_dataloader
default_hooks = recipe.default_hooks
log_processor = dict(by_epoch=False)
