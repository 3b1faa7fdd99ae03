# DeepLabV3+ with GC ViT-T on ADE20K, crops of 512x512, 160k iterations.
#
# Launch:   bash tools/dist_train.sh \
#               configs/segmentation/deeplabv3plus_gcvit-t_160k_ade20k-512x512.py 8
# Hardware: 8 GPUs, 2 images each
# Source:   recipe ours: mmseg's DeepLabV3+; window and schedule of
#           upernet_gcvit-t_160k_ade20k-512x512.py. GC ViT keeps its stride of 32, where mmseg's
#           ResNet has 8 and dilated convolutions: the dilation rates of the head are a quarter of
#           mmseg's
# Result:   paper: not reported; ours: not trained
# License:  CC BY-NC-SA 4.0 for the pretrained weights and for models fine-tuned from them
_base_ = [
    'mmseg::_base_/models/deeplabv3plus_r50-d8.py',
    './_base_/ade20k_160k.py',
    '../_base_/gcvit_t.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    # the heads do not use stride 8
    backbone=dict(_base_.gcvit_t, _delete_=True, out_indices=(0, 2, 3)),
    decode_head=dict(
        in_channels=512, in_index=2, c1_in_channels=64, dilations=(1, 3, 6, 9), num_classes=150
    ),
    auxiliary_head=dict(in_channels=256, in_index=1, num_classes=150),
)
