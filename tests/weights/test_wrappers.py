"""Prefixes of wrappers in any order: torch.compile, FSDP, AveragedModel, Lightning."""

import pytest
import torch
from timm.utils import ModelEmaV2
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.optim.swa_utils import AveragedModel

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.models.gcvit import Block
from mmgcvit.weights import Checkpoint, convert_weights, fit, load_pretrained, read_checkpoint
from mmgcvit.weights.checkpoint import shapes_of
from mmgcvit.weights.layouts import LAYOUTS


@pytest.fixture
def source(nano):
    model = GCViT(nano, window_size=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def load(path, nano, state, **arguments):
    torch.save({'state_dict': state}, path / 'w.pth')
    model = GCViT(nano, window_size=3)
    return model, load_pretrained(model, path / 'w.pth', **arguments)


def assert_same(model, source):
    wanted = source.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'prefix',
    [
        '_orig_mod.',
        'module._orig_mod.',
        '_orig_mod.module.module.',
        'model.backbone.',
        'ema.module.',
        'net._orig_mod.backbone._orig_mod.',
        'model._fsdp_wrapped_module.backbone._fsdp_wrapped_module.',
        'backbone.model.',
        '_forward_module.model.backbone.',
    ],
)
def test_prefixes_in_any_order(tmp_path, nano, source, prefix, layout):
    state = LAYOUTS[layout].from_own(source.state_dict())
    state = {prefix + name: tensor for name, tensor in state.items()}
    model, fitted = load(tmp_path, nano, {**state, 'loss.weight': torch.rand(3)})
    found, wanted = model.state_dict(), source.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in fitted.taken)
    # the timm layout does not have the norms of the first three outputs
    assert len(fitted.initial) == (6 if layout == 'timm' else 0)
    assert 'loss.weight' in fitted.dropped


def test_wrappers_within_the_backbone(tmp_path, nano, source):
    inner = {}
    for name, tensor in source.state_dict().items():
        name = name.replace('stem.', 'stem._orig_mod.')
        inner[name.replace('.attn.', '._checkpoint_wrapped_module.attn.')] = tensor
    assert_same(load(tmp_path, nano, inner)[0], source)
    assert_same(
        load(tmp_path, nano, {f'a.{k}': v for k, v in inner.items()}, prefix='a')[0], source
    )


class Lightning(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.model = nn.ModuleDict({'backbone': backbone, 'head': nn.Linear(3, 3)})
        self.loss = nn.Linear(2, 2)


@pytest.mark.parametrize(
    'wrap', [torch.compile, AveragedModel, ModelEmaV2, Lightning, nn.DataParallel]
)
def test_state_dicts_of_real_wrappers(tmp_path, nano, source, wrap):
    assert_same(load(tmp_path, nano, wrap(source).state_dict())[0], source)


def test_a_compiled_averaged_classifier_is_converted_as_a_classifier(tmp_path, nano):
    classifier = nn.Module()
    classifier.backbone = GCViT(nano, window_size=3, out_indices=(3,))
    classifier.head = nn.ModuleDict({'fc': nn.Linear(64, 5)})
    torch.save(AveragedModel(torch.compile(classifier)).state_dict(), tmp_path / 'w.pth')
    for layout in LAYOUTS:
        out = convert_weights(tmp_path / 'w.pth', tmp_path / f'{layout}.pth', layout).out
        wanted = Checkpoint.from_state(classifier.state_dict(), 'here').in_layout(layout)
        found = read_checkpoint(out)['state_dict']
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_prefix_selects_one_of_two_networks_in_a_file(tmp_path, nano, source):
    state = {f'model.{k}': v for k, v in source.state_dict().items()}
    state |= {f'ema.module.{k}': v + 1 for k, v in source.state_dict().items()}
    with pytest.raises(UserError, match=r"prefix='model\.' or prefix='ema\.module\.'"):
        load(tmp_path, nano, state)
    assert_same(load(tmp_path, nano, state, prefix='model')[0], source)
    model, _ = load(tmp_path, nano, state, prefix='ema')
    assert torch.equal(model.norm3.bias, source.norm3.bias + 1)
    student = {f'student.{k}': v for k, v in source.state_dict().items()}
    with pytest.raises(UserError, match=r"select one with prefix='student\.'"):
        load(tmp_path, nano, student)
    # an empty prefix selects the names without one
    both = {**source.state_dict(), **student, **{f'ema.{k}': v for k, v in student.items()}}
    assert_same(load(tmp_path, nano, both, prefix='')[0], source)


def test_two_tensors_with_the_same_name_are_an_error(tmp_path, nano, source):
    state = source.state_dict()
    state['stem._orig_mod.conv.bias'] = state['stem.conv.bias']
    message = r'two tensors for stem\.conv\.bias, one of them stem\._orig_mod\.conv\.bias'
    with pytest.raises(UserError, match=message):
        load(tmp_path, nano, state)


def test_models_that_are_wrapped_in_memory(tmp_path, nano, source):
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    compiled = GCViT(nano, window_size=5)
    fitted = load_pretrained(torch.compile(compiled), tmp_path / 'w.pth')
    assert all(name.startswith('_orig_mod.') for name in fitted.taken)
    assert len(fitted.resized) == 8 and torch.equal(compiled.norm0.bias, source.norm0.bias)
    wrapped = GCViT(nano, window_size=3)
    apply_activation_checkpointing(wrapped, check_fn=lambda module: isinstance(module, Block))
    load_pretrained(wrapped, tmp_path / 'w.pth')
    assert_same(wrapped, source)
    partly = GCViT(nano, window_size=3)
    partly.stages[0].blocks[1] = torch.compile(partly.stages[0].blocks[1])
    load_pretrained(partly, tmp_path / 'w.pth')
    torch.save(partly.state_dict(), tmp_path / 'partly.pth')
    model = GCViT(nano, window_size=3)
    load_pretrained(model, tmp_path / 'partly.pth')
    assert_same(model, source)


def test_other_architectures_are_matched_by_name():
    """Swin shares some names with NVIDIA's layout, and has position bias tables, too."""
    shapes = {
        'backbone.patch_embed.proj.weight': (8, 3, 4, 4),
        'backbone.layers.0.attn.relative_position_bias_table': (49, 2),
        'neck.weight': (2, 2),
    }
    state = {f'module.{name}': torch.rand(shape) for name, shape in shapes.items()}
    found = fit(Checkpoint.from_state(state, 'here'), shapes)
    assert found.tensors == {name: state[f'module.{name}'] for name in shapes}
    assert not found.dropped
    table = 'module.backbone.layers.0.attn.relative_position_bias_table'
    state[table] = torch.rand(81, 2)
    with pytest.raises(UserError, match=r'1 tensor has a mismatched shape: backbone\.layers\.0'):
        fit(Checkpoint.from_state(state, 'here'), shapes)


@pytest.mark.parametrize('name', ['model', 'net', 'module', 'backbone', 'body', 'model.backbone'])
@pytest.mark.parametrize('wrapper', ['', 'module.', '_orig_mod.', 'module._orig_mod.'])
def test_a_network_finds_its_own_tensors_wherever_its_backbone_is(source, name, wrapper):
    state = {f'{name}.{k}': v for k, v in source.state_dict().items()}
    state |= {'neck.weight': torch.rand(3), 'model.bbox_head.bias': torch.rand(2)}
    saved = {wrapper + name: tensor for name, tensor in state.items()}
    found = fit(Checkpoint.from_state(saved, 'here'), shapes_of(state), resize=False)
    assert found.tensors.keys() == state.keys() and not found.dropped
    assert all(found.tensors[name] is tensor for name, tensor in state.items())


@pytest.mark.parametrize('names', [('model', 'ema'), ('student.backbone', 'teacher.backbone')])
def test_models_with_two_backbones_are_matched_by_name(nano, source, names):
    state = {f'{name}.{k}': v for name in names for k, v in source.state_dict().items()}
    found = fit(Checkpoint.from_state(state, 'here'), shapes_of(state), resize=False)
    assert all(found.tensors[name] is tensor for name, tensor in state.items())


def test_messages_about_a_different_network_have_the_names_of_the_file(source):
    backbone = {f'module.backbone.{k}': v for k, v in source.state_dict().items()}
    checkpoint = Checkpoint.from_state(
        {**backbone, 'module.decode_head.bias': torch.rand(2)}, 'segmentor.pth'
    )
    shapes = {name.removeprefix('module.'): tuple(t.shape) for name, t in backbone.items()}
    shapes['bbox_head.bias'] = (3,)
    with pytest.raises(
        UserError, match=r'segmentor\.pth contains the backbone but not the rest .*'
    ) as e:
        fit(checkpoint, shapes)
    assert 'it has names like module.backbone.' in str(e.value)
    with pytest.raises(UserError, match=r'contains only the backbone of the model'):
        fit(Checkpoint.from_state(backbone, 'backbone.pth'), shapes)


def test_other_input_channels_of_a_network_need_its_backbone_alone(source):
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    state['decode_head.bias'] = torch.rand(2)
    shapes = {**shapes_of(state), 'backbone.stem.conv.weight': (16, 6, 3, 3)}
    with pytest.raises(
        UserError, match=r"init_cfg=dict\(type='Pretrained', checkpoint='here', ada"
    ):
        fit(Checkpoint.from_state(state, 'here'), shapes)
