"""Every config is read, built and run on one small image."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmgcvit.engine import load_config
from mmgcvit.models.arch import ARCHS

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.glob('configs/*/*.py'))
    if path.parent.name != '_base_'
]
# letters of a config's name → arch
SIZES = {
    **{'xxt': 'xxtiny', 'xt': 'xtiny', 't': 'tiny', 't2': 'tiny2'},
    **{'s': 'small', 's2': 'small2', 'b': 'base', 'l': 'large'},
}


@functools.cache
def published(path):
    """A config as it is in its file; not to be changed."""
    return load_config(ROOT / path)


def is_quick(path):
    return path.stem.endswith(('_xxt', '_shapes'))


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(path, id=str(path), marks=() if is_quick(path) else pytest.mark.slow)
        for path in CONFIGS
        if not path.stem.endswith('_fsdp')  # the network of another config
    ],
)
def built(request):
    """A config's path, the config and its model."""
    cfg = copy.deepcopy(published(request.param))
    init_default_scope(cfg.default_scope)
    # pretrained weights are another test's business
    weights, cfg.model.backbone.init_cfg = cfg.model.backbone.get('init_cfg'), None
    if not is_quick(request.param):
        # of 24 tokens a side they would be padding mostly, and take ten times as long
        cfg.model.backbone.window_size = 7
    if request.param.parent.name == 'detection':
        few_proposals(cfg.model)
    # one process, on the CPU
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    cfg.model.backbone.init_cfg = weights
    return request.param, cfg, model


def few_proposals(model):
    """Let a detector look at 16 boxes an image: its heads take most of the time otherwise."""
    rcnn = model.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 16
    for settings in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
        settings.max_per_img = 16


def test_there_is_a_config_of_every_size():
    names = {path.stem for path in CONFIGS}
    for size in SIZES:
        assert {f'mask_rcnn_gcvit_{size}', f'cascade_gcvit_{size}', f'upernet_gcvit_{size}'} < names


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_begins_with_launch_hardware_source_and_result(path):
    header = (ROOT / path).read_text().split('_base_')[0]
    for part in ('# Launch:', '# Hardware:', '# Source:', '# Result:', 'paper:', 'ours:'):
        assert part in header, part
    assert str(path) in header or 'tools/quickstart.sh' in header


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_arch_weights_drop_path_and_channels_are_of_the_size_in_the_name(path):
    match = re.fullmatch(r'(mask_rcnn|cascade|upernet)_gcvit_(\w+)', path.stem)
    if not match or match[2] not in SIZES:
        others = ('mask_rcnn_gcvit_shapes', 'cascade_gcvit_l_fsdp', 'custom_coco', 'custom_dataset')
        assert path.stem in others
        return
    arch, model = SIZES[match[2]], published(path).model
    assert model.backbone.arch == arch
    assert model.backbone.drop_path_rate == ARCHS[arch].drop_path_rate
    assert model.backbone.init_cfg.checkpoint.rpartition('/')[2] == f'gcvit_1k_{arch}.pth.tar'
    assert model.backbone.window_size == 24
    dims = ARCHS[arch].dims
    if match[1] == 'upernet':
        assert tuple(model.decode_head.in_channels) == dims
        assert model.auxiliary_head.in_channels == dims[model.auxiliary_head.in_index]
    else:
        assert tuple(model.neck.in_channels) == dims
    assert f'GC ViT-{match[2].upper()} ' in (ROOT / path).read_text().splitlines()[0]


def test_model_runs_forward_and_backward(built):
    path, _, model = built
    losses = (run_detector if path.parent.name == 'detection' else run_segmentor)(model)
    assert len(losses) >= 2
    total = sum(sum(value) if isinstance(value, list) else value for value in losses.values())
    assert torch.isfinite(total) and total > 0
    total.backward()
    without = [n for n, p in model.backbone.named_parameters() if p.grad is None]
    assert without == []
    model.zero_grad(set_to_none=True)


def run_detector(model):
    """Compare its channels, detect in an empty image and return the losses of one rectangle."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    assert list(model.backbone.out_channels) == [
        c.conv.in_channels for c in model.neck.lateral_convs
    ]
    extractors = [module for module in model.roi_head.modules() if hasattr(module, 'roi_layers')]
    assert len(extractors) >= 2
    for extractor in extractors:
        strides = list(extractor.featmap_strides)
        assert strides == list(model.backbone.strides)[: len(strides)]
    shape = (64, 96)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    image = torch.rand(1, 3, *shape)
    model.eval()
    with torch.no_grad():
        (found,) = model.predict(image, [sample])
    assert found.pred_instances.bboxes.shape[1] == 4
    masks = torch.zeros(1, *shape, dtype=torch.uint8)
    masks[:, 8:48, 10:70] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 8.0, 70.0, 48.0]]),
        labels=torch.tensor([1]),
        masks=BitmapMasks(masks.numpy(), *shape),
    )
    model.train()
    return {k: v for k, v in model.loss(image, [sample]).items() if 'loss' in k}


def run_segmentor(model):
    """Compare its channels, label an image and return the losses of another."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    channels = list(model.backbone.out_channels)
    assert list(model.decode_head.in_channels) == channels
    assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]
    shape = (64, 96)
    samples = [
        SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        for _ in range(2)
    ]
    images = torch.rand(2, 3, *shape)
    model.eval()
    with torch.no_grad():
        found = model.predict(images[:1], samples[:1])
    assert found[0].pred_sem_seg.shape == shape
    assert found[0].seg_logits.data.shape[0] == model.decode_head.num_classes
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, *shape)))
    model.train()
    return {k: v for k, v in model.loss(images, samples).items() if 'loss' in k}


def test_norms_and_bias_tables_are_not_decayed(built):
    _, cfg, model = built
    settings = dict(cfg.optim_wrapper, type='OptimWrapper')
    for name in ('loss_scale', 'use_fsdp'):  # of mixed precision
        settings.pop(name, None)
    decay = {}
    for group in build_optim_wrapper(model, settings).optimizer.param_groups:
        decay |= {id(p): group['weight_decay'] for p in group['params']}
    found = {name: decay[id(p)] for name, p in model.backbone.named_parameters()}
    for name, value in found.items():
        plain = 'norm' in name or name.endswith('relative_position_bias_table')
        assert (value == 0) == plain, name
