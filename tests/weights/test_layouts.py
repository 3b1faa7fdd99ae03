"""Round trips through the names of other releases, for all sizes."""

import pytest
import timm
import torch
from tiers import only_quick

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.models.arch import ARCHS
from mmgcvit.weights import Checkpoint
from mmgcvit.weights.layouts import LAYOUTS, to_nvidia


def network(arch, norms=(0, 1, 2, 3), **others):
    """Small tensors with a backbone's names and additional ones, each with a unique value."""
    with torch.device('meta'):
        shapes = GCViT(arch, window_size=(7, 7, 14, 7)).state_dict()
    left_out = tuple(f'norm{i}.' for i in range(4) if i not in norms)
    state = {k: clipped(v) for k, v in shapes.items() if not k.startswith(left_out)}
    state |= others
    return {k: torch.full(shape, float(i)) for i, (k, shape) in enumerate(state.items())}


def clipped(tensor):
    return tuple(min(side, 2) for side in tensor.shape)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].flatten()[0] == tensor.flatten()[0], name


def through(state, layout):
    """Convert a state dict to a layout and back to this package's layout."""
    renamed = Checkpoint.from_state(state, 'here').in_layout(layout)
    found = Checkpoint.from_state(renamed, 'there')
    assert found.layout == layout and not found.unused
    return renamed, found.in_layout('mmgcvit')


CLASSIFIER = {'head.fc.weight': (10, 64), 'head.fc.bias': (10,)}
DETECTOR = {'neck.conv.weight': (3, 2), 'roi_head.bbox_head.0.fc.weight': (2,), 'head.fc.x': (1,)}


# without and with layer scale
@pytest.mark.parametrize('arch', only_quick(ARCHS, ['xxtiny', 'small2']))
@pytest.mark.parametrize('layout', LAYOUTS)
def test_round_trips_are_the_identity(arch, layout):
    backbone = network(arch, norms=(3,))
    renamed, back = through(backbone, layout)
    assert_same(back, backbone)
    assert (layout == 'mmgcvit') == (renamed.keys() == backbone.keys())
    classifier = network(arch, norms=(3,), **CLASSIFIER)
    prefixed = {k if k.startswith('head.') else f'backbone.{k}': v for k, v in classifier.items()}
    assert_same(through(prefixed, layout)[1], prefixed)
    if layout == 'timm':
        return  # the layout has only one norm and does not support detectors
    assert_same(through(network(arch), layout)[1], network(arch))
    detector = {f'backbone.{k}': v for k, v in network(arch).items()} | network(arch, **DETECTOR)
    detector = {k: v for k, v in detector.items() if k.startswith(('backbone.', *DETECTOR))}
    renamed, back = through(detector, layout)
    assert_same(back, detector)
    assert set(DETECTOR) < set(renamed)


@pytest.mark.parametrize('arch', ['xxtiny', 'xtiny', 'tiny', 'small', 'base'])
def test_names_and_shapes_equal_those_of_timm(arch):
    with torch.device('meta'):
        theirs = timm.create_model(f'gcvit_{arch}', num_classes=10).state_dict()
    classifier = network(arch, norms=(3,), **CLASSIFIER)
    state = {k if k.startswith('head.') else f'backbone.{k}': v for k, v in classifier.items()}
    ours = Checkpoint.from_state(state, 'here').in_layout('timm')
    assert {k: clipped(v) for k, v in ours.items()} == {k: clipped(v) for k, v in theirs.items()}
    back = Checkpoint.from_state(ours, 'there').in_layout('mmgcvit')
    assert_same(back, state)


def test_names_of_nvidias_classifier(nano):
    state = network(nano, norms=(3,), **CLASSIFIER)
    state = {k if k.startswith('head.') else f'backbone.{k}': v for k, v in state.items()}
    names = Checkpoint.from_state(state, 'here').in_layout('nvidia')
    assert {
        *('patch_embed.proj.weight', 'patch_embed.conv_down.conv.2.fc.0.weight'),
        *('levels.0.q_global_gen.to_q_global.0.conv.0.weight', 'levels.2.downsample.conv.3.weight'),
        *('levels.3.blocks.1.attn.relative_position_bias_table', 'levels.1.blocks.0.gamma1'),
        *('norm.weight', 'head.weight', 'head.bias'),
    } < names.keys()


def test_timm_layout_supports_neither_detectors_nor_the_first_norms(nano):
    state = {f'backbone.{k}': v for k, v in network(nano).items()}
    found = Checkpoint.from_state({**state, 'neck.weight': torch.zeros(1)}, 'here')
    with pytest.raises(UserError, match=r'the timm layout supports only .* like neck\.weight'):
        found.in_layout('timm')
    found.others.clear()
    norms = [name for name in found.in_layout('timm') if 'norm.' in name]
    assert norms == ['stages.3.norm.weight', 'stages.3.norm.bias']


def test_two_tensors_with_the_same_name_are_an_error(nano):
    state = to_nvidia(network(nano))
    state['norm.weight'] = state['norm3.weight']
    with pytest.raises(UserError, match=r'two tensors for norm3\.weight, one of them norm'):
        Checkpoint.from_state(state, 'here')
