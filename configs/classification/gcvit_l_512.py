# GC ViT-L on ImageNet-1K, 512x512, 30 epochs from ImageNet-21K weights.
#
# Launch:   NNODES=4 NODE_RANK=0 MASTER_ADDR=… bash tools/dist_train.sh \
#               configs/classification/gcvit_l_512.py 8    (on each of 4 nodes, with its NODE_RANK)
# Hardware: 32 GPUs, 16 images each; for fewer see docs/classification.md
# Source:   windows, weights and drop path 0.1 published; recipe ours
# Result:   paper: not reported; model card: top-1 87.6; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = './gcvit_l_384.py'

image_size = 512
model = dict(backbone=dict(image_size=image_size))
train_pipeline = [
    dict(step, scale=image_size) if 'scale' in step else step for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=image_size) if 'scale' in step else step for step in _base_.test_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
