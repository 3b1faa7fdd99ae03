"""Small models with random weights, whose scores differ like those of trained models."""

import torch
from untrained import DATA

from mmgcvit.analysis.building import build_untrained
from mmgcvit.engine import load_config
from mmgcvit.inference import load_trained

CONFIGS = {
    name: DATA / 'configs' / f'{name}_tiny.py'
    for name in ('mask_rcnn', 'cascade', 'retinanet', 'upernet', 'classifier')
}
ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0])
ATSS = {
    'model.type': 'ATSS',
    'model.bbox_head.type': 'ATSSHead',
    'model.bbox_head.norm_cfg': None,
    'model.bbox_head.anchor_generator': dict(ANCHORS, strides=[4, 8, 16, 32]),
}
# a pipeline of classifiers with the transforms of ImageNet
CROPPED = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=72, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=(65, 58)),
    dict(type='PackInputs'),
]
# layers that compute scores, and the size of their weights, so that few scores are 0 or 1
LAST = {
    **dict(fc_cls=1, conv_logits=1, conv_seg=1, fc=1),
    **dict(rpn_cls=0.2, retina_cls=0.2, atss_cls=0.2, atss_centerness=0.2),
}


def load(root, name, **options):
    """Load a small model from a checkpoint, ``weights.pth``, that is written first.

    Scores of random weights are almost equal: the least rounding would change which boxes remain.
    The layers that compute scores therefore get larger weights.
    """
    if name not in ('classifier', 'upernet'):
        options = {'model.backbone.arch.depths': (1, 1, 1, 1), **options}
    torch.manual_seed(0)
    model = build_untrained(load_config(CONFIGS[name], options=options))
    with torch.no_grad():
        for key, value in model.named_parameters():
            scale = LAST.get(key.split('.')[-2])
            if scale and key.endswith('weight'):
                value.copy_(torch.randn(value.shape) * scale * value[0].numel() ** -0.5)
    torch.save(dict(state_dict=model.state_dict()), root / 'weights.pth')
    return load_trained(CONFIGS[name], str(root / 'weights.pth'), 'cpu', options)
