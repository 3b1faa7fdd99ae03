"""All ways to load weights give the same values and resize tables to the model's windows."""

import copy
import hashlib
import pickle
from collections import OrderedDict

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from nano import NANO
from torch import nn

from mmgcvit import GCViT
from mmgcvit.models import ARCHS
from mmgcvit.models.gcvit import Block
from mmgcvit.ops import resize_bias_table

TABLE = 'relative_position_bias_table'
WINDOWS, OTHER_WINDOWS = 4, (4, 6, 4, 3)
# number of blocks in the stages with different window sizes
RESIZED = 1 + 2


def backbone(seed, window_size, **arguments):
    torch.manual_seed(seed)
    model = GCViT(NANO, window_size=window_size, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def state():
    """State dict of a backbone with windows of 4 x 4 tokens."""
    return backbone(1, WINDOWS).state_dict()


class Detector(BaseModule):
    """A larger model that contains the backbone."""

    def __init__(self, model):
        super().__init__()
        self.backbone = model
        self.head = nn.Linear(2, 2)


def by_torch(model, state, path, strict):
    model.load_state_dict(state, strict=strict)


def by_torch_assigned(model, state, path, strict):
    model.load_state_dict(state, strict=strict, assign=True)


def by_mmengine(model, state, path, strict):
    load_state_dict(model, state, strict=strict)


def by_file(model, state, path, strict):
    torch.save({'meta': {}, 'state_dict': state}, path)
    load_checkpoint(model, str(path), map_location='cpu', strict=strict)


WAYS = pytest.mark.parametrize('load', [by_torch, by_torch_assigned, by_mmengine, by_file])
STRICT = pytest.mark.parametrize('strict', [True, False])


def assert_loaded(model, state):
    """Check that a model has the values of a state dict, with tables resized to its windows."""
    found = model.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        if name.endswith(TABLE):
            value = resize_bias_table(value, len(found[name]))
        assert torch.equal(found[name], value), name


@WAYS
@STRICT
@pytest.mark.parametrize('place', ['alone', 'backbone', 'deeper', 'wrapped'])
def test_tables_for_different_window_sizes_are_resized(load, strict, place, state, tmp_path, log):
    model = backbone(2, OTHER_WINDOWS)
    if place == 'backbone':
        whole, prefix = Detector(model), 'backbone.'
    elif place == 'deeper':
        whole, prefix = nn.ModuleDict({'teacher': Detector(model)}), 'teacher.backbone.'
    elif place == 'wrapped':
        whole, prefix = nn.ModuleDict({'model': model}), 'model.'
    else:
        whole, prefix = model, ''
    others = {k: v for k, v in whole.state_dict().items() if not k.startswith(prefix)}
    given = OrderedDict(others | {prefix + name: value for name, value in state.items()})
    before = {name: value.clone() for name, value in given.items()}
    load(whole, given, tmp_path / 'file.pth', strict)
    assert_loaded(model, state)
    # the caller's dict is unchanged
    assert given.keys() == before.keys()
    assert all(torch.equal(given[name], value) for name, value in before.items())
    assert [line for line in log if 'position bias tables' in line] == [
        f'{RESIZED} position bias tables were resized to the window sizes of the model'
    ]


@WAYS
@STRICT
def test_tables_for_the_same_window_sizes_are_loaded_unchanged(load, strict, state, tmp_path, log):
    model = backbone(2, WINDOWS)
    load(model, OrderedDict(state), tmp_path / 'file.pth', strict)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert not any('position bias tables' in line for line in log)


def test_outputs_equal_those_of_a_model_with_these_tables(state):
    model, wanted = backbone(2, OTHER_WINDOWS).eval(), backbone(3, OTHER_WINDOWS).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in wanted.named_parameters():
            value = state[name]
            parameter.copy_(
                resize_bias_table(value, len(parameter)) if name.endswith(TABLE) else value
            )
        images = torch.randn(1, 3, 50, 70)
        assert all(torch.equal(a, b) for a, b in zip(model(images), wanted(images), strict=True))


def test_a_pretrained_init_cfg_resizes_and_reports_once(state, tmp_path, log):
    path = tmp_path / 'file.pth'
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, path)
    model = backbone(
        2, OTHER_WINDOWS, init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix='backbone')
    )
    model.init_weights()
    assert_loaded(model, state)
    lines = [line for line in log if 'resized' in line]
    assert len(lines) == 1 and f'({RESIZED} resized' in lines[0]


@pytest.mark.parametrize(
    'duplicate',
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=['copy', 'pickle'],
)
def test_tables_are_resized_to_the_windows_of_a_copy(duplicate, state):
    model = backbone(2, OTHER_WINDOWS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = duplicate(model)
    twin.load_state_dict(state)
    assert_loaded(twin, state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    # tables are resized to the window sizes of the copy, not of the original
    attention = twin.stages[0].blocks[0].attn
    attention.relative_position_bias_table = nn.Parameter(torch.zeros(81, 1))
    twin.load_state_dict(state)
    assert attention.relative_position_bias_table.shape == (81, 1)
    assert_loaded(twin, state)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_tables_of_different_dtypes_are_resized_and_cast(dtype, state):
    model = backbone(2, OTHER_WINDOWS)
    model.load_state_dict({name: value.to(dtype) for name, value in state.items()})
    for name, value in model.state_dict().items():
        wanted = state[name].to(dtype)
        if name.endswith(TABLE):
            wanted = resize_bias_table(wanted, len(value))
        assert value.dtype == torch.float32 and torch.equal(value, wanted.float()), name


BLOCK = 'stages.1.blocks.0.attn'  # two heads; 49 offsets in the file, 121 in the model


@pytest.mark.parametrize(
    ('table', 'message'),
    [
        (torch.zeros(48, 2), r'size mismatch'),
        (torch.zeros(36, 2), r'size mismatch'),
        (torch.zeros(49, 3), r'size mismatch'),
        (torch.zeros(49), r'size mismatch'),
        (torch.zeros(7, 7, 2), r'size mismatch'),
        (torch.zeros(()), r'size mismatch'),
        (torch.zeros(0, 2), r'size mismatch'),
        ('no tensor', r'expected torch\.Tensor'),
        ([[0.0, 0.0]] * 49, r'expected torch\.Tensor'),
    ],
)
@pytest.mark.parametrize('load', [by_torch, by_mmengine])
def test_strict_loading_rejects_tables_that_cannot_be_resized(load, table, message, state, log):
    state[f'{BLOCK}.{TABLE}'] = table
    model = backbone(2, OTHER_WINDOWS)
    with pytest.raises(RuntimeError, match=message) as error:
        load(model, state, None, True)
    assert f'{BLOCK}.{TABLE}' in str(error.value)
    assert any(line.startswith(f'{RESIZED - 1} position bias tables') for line in log)


def test_missing_and_unexpected_names_are_reported(state):
    del state[f'{BLOCK}.{TABLE}']
    state[f'stages.7.{TABLE}'] = torch.zeros(49, 2)
    model = backbone(2, OTHER_WINDOWS)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert f'Missing key(s) in state_dict: "{BLOCK}.{TABLE}"' in str(error.value)
    assert f'Unexpected key(s) in state_dict: "stages.7.{TABLE}"' in str(error.value)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([f'{BLOCK}.{TABLE}'], [f'stages.7.{TABLE}'])


def test_names_shapes_and_order_equal_those_of_version_0_1():
    """Weights are matched by name, but optimizer states in checkpoints by parameter order."""
    lines = []
    with torch.device('meta'):
        for arch in ARCHS:
            state = GCViT(arch).state_dict()
            lines += [f'{arch} {name} {tuple(value.shape)}' for name, value in state.items()]
    assert len(lines) == 3838
    digest = '4a731473e29a874bc66a2f154d20f2f66c9e295b9fd6369622fbd65666fa36d9'
    assert hashlib.sha256('\n'.join(lines).encode()).hexdigest() == digest


def test_tables_of_wrapped_blocks_are_resized(nano):
    """Names of parameters in checkpoint-wrapped blocks differ from those in a state dict."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    source, model = GCViT(nano, window_size=3), GCViT(nano, window_size=5)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    assert any('_checkpoint_wrapped_module' in name for name, _ in model.named_parameters())
    model.load_state_dict(source.state_dict())
    table = 'stages.2.blocks.1.attn.relative_position_bias_table'
    wanted = resize_bias_table(source.state_dict()[table], 81)
    assert torch.equal(model.state_dict()[table], wanted)
