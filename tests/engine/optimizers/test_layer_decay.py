"""Layer-wise learning-rate decay: the group of every parameter, in every kind of model."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmgcvit import GCViT
from mmgcvit.engine import load_config
from mmgcvit.errors import UserError

ROOT = Path(__file__).parents[3]
LR, WEIGHT_DECAY, RATE = 1e-3, 0.05, 0.5


class Model(nn.Module):
    """A backbone and a head, as any detector, segmentor or classifier has."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(4, 4)


def optim_wrapper(**paramwise):
    return dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=WEIGHT_DECAY),
        constructor='mmgcvit.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=RATE, **paramwise),
    )


def settings_of(model, cfg):
    """Return name → (lr, weight decay) and the optimizer's groups."""
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    found = {p: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}
    names = {name: found.pop(p) for name, p in model.named_parameters() if p in found}
    assert not found
    return names, groups


def layers_of_nano():
    """Name prefixes and layers of a backbone with depths 2, 1, 3 and 2, written by hand."""
    return {
        'stem.': 0,
        'stages.0.query_generator.': 1,
        'stages.0.blocks.0.': 1,
        'stages.0.blocks.1.': 2,
        'stages.0.downsample.': 2,
        'norm0.': 2,
        'stages.1.blocks.0.': 3,
        'stages.1.downsample.': 3,
        'norm1.': 3,
        'stages.2.query_generator.': 4,
        'stages.2.blocks.0.': 4,
        'stages.2.blocks.1.': 5,
        'stages.2.blocks.2.': 6,
        'stages.2.downsample.': 6,
        'norm2.': 6,
        'stages.3.query_generator.': 7,
        'stages.3.blocks.0.': 7,
        'stages.3.blocks.1.': 8,
        'norm3.': 8,
    }


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'teacher.backbone.'])
def test_depth_of_each_layer(nano, prefix):
    """What constructors of other libraries ask a backbone for."""
    model, used = GCViT(nano, window_size=3), set()
    for name, _ in model.named_parameters():
        (part,) = (part for part in layers_of_nano() if name.startswith(part))
        used.add(part)
        # the last of ten layers is that of what is outside
        assert model.get_layer_depth(prefix + name, prefix) == (layers_of_nano()[part], 10), name
    assert used == set(layers_of_nano())
    outside = ['head.weight', 'neck.stem.conv.weight', 'norm0', 'stages.0', 'stemming.weight', '']
    outside += ['norm.weight', 'stages.weight', 'backbones.stem.conv.weight']
    for name in outside:
        assert model.get_layer_depth(name, prefix) == (9, 10), name
    if prefix:
        # a name of the backbone without the prefix is another module's
        assert model.get_layer_depth('stem.conv.weight', prefix) == (9, 10)
        assert model.get_layer_depth('norm0.weight', prefix) == (9, 10)


def test_depths_are_counted_in_the_blocks_and_stages_that_exist(nano):
    model = GCViT(nano, window_size=3, out_indices=(0, 2))
    assert model.get_layer_depth('norm2.bias') == (6, 8)
    assert model.get_layer_depth('head.bias') == (7, 8)
    assert model.get_layer_depth('norm3.weight') == model.get_layer_depth('norm7.weight') == (7, 8)
    with torch.device('meta'):
        tiny = GCViT('tiny')
    assert tiny.get_layer_depth('stages.2.blocks.10.mlp.fc1.weight') == (18, 33)
    assert tiny.get_layer_depth('stages.3.query_generator.0.mbconv.pwconv.weight') == (27, 33)


def check_every_parameter(model, found, last=9):
    layers = {f'backbone.{prefix}': layer for prefix, layer in layers_of_nano().items()}
    used = set()
    for name, parameter in model.named_parameters():
        prefix = next((prefix for prefix in layers if name.startswith(prefix)), None)
        used.add(prefix)
        assert (prefix is None) == (not name.startswith('backbone.'))
        layer = layers.get(prefix, last)
        plain = parameter.ndim == 1 or name.endswith('relative_position_bias_table')
        assert found[name] == (
            pytest.approx(LR * RATE ** (last - layer)),
            0 if plain else WEIGHT_DECAY,
        ), name
    return used - {None}


def test_every_parameter_has_its_layers_rate_and_decay(nano):
    model = Model(GCViT(nano, window_size=3))
    found, groups = settings_of(model, optim_wrapper())
    assert found.keys() == dict(model.named_parameters()).keys()
    assert len(check_every_parameter(model, found)) == len(layers_of_nano())
    # one group with and one without weight decay for each of layers 0 to 9
    assert len(groups) == 20


def test_layers_are_counted_in_the_stages_that_exist(nano):
    model = Model(GCViT(nano, window_size=3, out_indices=(0, 2)))
    found, groups = settings_of(model, optim_wrapper())
    check_every_parameter(model, found, last=7)
    assert len(groups) == 16


def test_frozen_parameters_are_in_no_group(nano):
    model = Model(GCViT(nano, window_size=3, frozen_stages=1))
    found, _ = settings_of(model, optim_wrapper())
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith('backbone.stages.0') for name in found)


def test_mmengines_own_settings_keep_their_meaning(nano):
    model = Model(GCViT(nano, window_size=3))
    cfg = optim_wrapper(custom_keys={'stages.2': dict(lr_mult=0.1, decay_mult=2.0)})
    found, groups = settings_of(model, cfg)
    key = 'backbone.stages.2.blocks.1.mlp.fc1'
    assert found[f'{key}.weight'] == (pytest.approx(LR * RATE**4 * 0.1), 2 * WEIGHT_DECAY)
    assert found[f'{key}.bias'] == (pytest.approx(LR * RATE**4 * 0.1), 0)
    assert found['head.weight'] == (LR, WEIGHT_DECAY)
    # norm2 is in layer 6 and not in stages.2
    assert len(groups) == 21


def test_model_in_ddp_gets_the_same_groups(nano, tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = Model(GCViT(nano, window_size=3))
        plain, _ = settings_of(model, optim_wrapper())
        wrapped, _ = settings_of(MMDistributedDataParallel(model), optim_wrapper())
    finally:
        torch.distributed.destroy_process_group()
    assert {name.removeprefix('module.'): value for name, value in wrapped.items()} == plain


@pytest.mark.parametrize(
    'path',
    [
        'detection/mask_rcnn_gcvit_shapes.py',
        'segmentation/upernet_gcvit-xxt_160k_ade20k-512x512.py',
    ],
)
def test_a_recipe_takes_it_by_the_two_documented_settings(path):
    options = {
        'optim_wrapper.constructor': 'mmgcvit.LayerDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg.decay_rate': 0.9,
    }
    cfg = load_config(ROOT / 'configs' / path, options=options)
    cfg.optim_wrapper.type = 'OptimWrapper'
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    found, groups = settings_of(model, cfg.optim_wrapper)
    lr, weight_decay = (cfg.optim_wrapper.optimizer[key] for key in ('lr', 'weight_decay'))
    blocks = sum(len(stage.blocks) for stage in model.backbone.stages)
    assert found['backbone.stem.conv.weight'] == (
        pytest.approx(lr * 0.9 ** (blocks + 1)),
        weight_decay,
    )
    tables = [value for name, value in found.items() if name.endswith('bias_table')]
    assert len(tables) == blocks and all(decay == 0 for _, decay in tables)
    # the heads' custom_keys of the shapes config make two more
    extra = 2 * ('shapes' in path)
    assert len(groups) <= 2 * (blocks + 2) + extra


def classifier(arch):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmgcvit.GCViT', arch=arch, window_size=3, out_indices=[3]),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64),
        )
    )


def test_a_classifier_takes_it(nano):
    model = classifier(nano)
    found, groups = settings_of(model, Config(dict(wrapper=optim_wrapper())).wrapper)
    check_every_parameter(model, found)
    assert len(groups) == 20


def of_mmpretrain():
    cfg = optim_wrapper()
    cfg['constructor'] = 'mmpretrain.LearningRateDecayOptimWrapperConstructor'
    cfg['paramwise_cfg'] = dict(layer_decay_rate=RATE, flat_decay_mult=0.0)
    return cfg


def test_mmpretrains_constructor_gives_a_classifier_the_same_rates(nano):
    model = classifier(nano)
    found, _ = settings_of(model, of_mmpretrain())
    ours, _ = settings_of(model, optim_wrapper())
    assert found.keys() == ours.keys() == dict(model.named_parameters()).keys()
    for name, (rate, decay) in found.items():
        # weight decay of tables is a difference: mmpretrain's takes custom_keys for it
        wanted = WEIGHT_DECAY if name.endswith('relative_position_bias_table') else ours[name][1]
        assert (rate, decay) == (pytest.approx(ours[name][0]), wanted), name


@pytest.mark.parametrize(
    ('path', 'constructor'),
    [
        ('detection/mask_rcnn_gcvit_shapes.py', 'mmdet.LearningRateDecayOptimizerConstructor'),
        (
            'segmentation/upernet_gcvit-xxt_160k_ade20k-512x512.py',
            'mmseg.LearningRateDecayOptimizerConstructor',
        ),
        (
            'detection/mask_rcnn_gcvit_shapes.py',
            'mmpretrain.LearningRateDecayOptimWrapperConstructor',
        ),
    ],
)
def test_detectors_and_segmentors_still_need_ours(path, constructor):
    """Theirs know ConvNeXt and BEiT by name, and mmpretrain's asks the whole model for depths."""
    cfg = load_config(ROOT / 'configs' / path)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    theirs = optim_wrapper(num_layers=12, layer_decay_rate=RATE)
    theirs['constructor'] = constructor
    with pytest.raises(NotImplementedError):
        build_optim_wrapper(model, theirs)


def test_a_training_step_uses_the_rates(nano):
    """With plain SGD of equal gradients, steps are as large as the rates say."""
    model = Model(GCViT(nano, window_size=3))
    cfg = optim_wrapper()
    cfg['optimizer'] = dict(type='SGD', lr=LR)
    wrapper = build_optim_wrapper(model, cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    step = {name: (before[name] - p).mean().item() for name, p in model.named_parameters()}
    assert step['head.weight'] == pytest.approx(LR, rel=1e-3)
    assert step['backbone.stem.conv.weight'] == pytest.approx(LR * RATE**9, rel=2e-2)


@pytest.mark.parametrize('rate', [None, 0, 1.5, '0.8'])
def test_a_rate_that_makes_no_sense_is_an_error(nano, rate):
    cfg = optim_wrapper()
    cfg['paramwise_cfg']['decay_rate'] = rate
    with pytest.raises(UserError, match=r'decay_rate=.* is not allowed: use a number above 0'):
        build_optim_wrapper(Model(GCViT(nano, window_size=3)), cfg)


def test_other_backbones_and_an_optimizer_without_lr_are_errors(nano):
    with pytest.raises(UserError, match=r'Model\.backbone is Identity'):
        build_optim_wrapper(Model(nn.Identity()), optim_wrapper())
    cfg = optim_wrapper()
    del cfg['optimizer']['lr']
    with pytest.raises(UserError, match='has no lr'):
        build_optim_wrapper(Model(GCViT(nano, window_size=3)), cfg)
