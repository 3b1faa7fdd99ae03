"""What of a file becomes the backbone's weights, and what the log says of it."""

import argparse

import pytest
import torch
import torch.nn.functional as F

from mmgcvit import GCViT
from mmgcvit.weights import WeightsError, load_weights, resize_bias_table, to_nvidia


@pytest.fixture
def source(nano):
    """A detection backbone with windows of 4 tokens whose weights are all their own."""
    model = GCViT(nano, window_size=4).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def save(tmp_path):
    def write(content):
        path = tmp_path / 'weights.pth.tar'
        torch.save(content, path)
        return str(path)

    return write


def load(path, arch, **arguments):
    init_cfg = dict(type='Pretrained', checkpoint=path, **arguments.pop('init', {}))
    model = GCViT(arch, window_size=arguments.pop('window_size', 4), init_cfg=init_cfg, **arguments)
    model.init_weights()
    return model.eval()


def same_outputs(a, b):
    images = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        return all(torch.equal(x, y) for x, y in zip(a(images), b(images), strict=True))


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('rename', [to_nvidia, dict], ids=['nvidia', 'own'])
def test_layouts_prefixes_and_wrappings(nano, source, save, prefix, key, rename):
    state = {prefix + k: v for k, v in rename(source.state_dict()).items()}
    if 'backbone' in prefix:
        state |= {prefix.replace('backbone', 'neck') + 'conv.weight': torch.zeros(3)}
    assert same_outputs(load(save(state if key is None else {key: state}), nano), source)


def test_classifier_file_with_all_that_nvidia_puts_beside_the_weights(nano, source, save, log):
    state = to_nvidia(source.state_dict())
    for i in range(3):
        del state[f'norm{i}.weight'], state[f'norm{i}.bias']
    state['norm.weight'], state['norm.bias'] = state.pop('norm3.weight'), state.pop('norm3.bias')
    state['head.weight'], state['head.bias'] = torch.zeros(10, 64), torch.zeros(10)
    state['levels.0.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16)
    optimizer = torch.optim.AdamW(source.parameters())
    path = save(
        {
            'epoch': 310,
            'arch': 'gc_vit_nano',
            'state_dict': state,
            'optimizer': optimizer.state_dict(),
            'args': argparse.Namespace(lr=1e-3, data='imagenet'),
        }
    )
    model = load(path, nano)
    own = source.state_dict()
    for name, value in model.state_dict().items():
        at_start = name.startswith(('norm0', 'norm1', 'norm2'))
        wanted = torch.full_like(value, float(name.endswith('weight'))) if at_start else own[name]
        assert torch.equal(value, wanted), name
    (line,) = [message for message in log if 'tensors taken' in message]
    assert f'{len(own) - 6} tensors taken, 0 of them resized' in line
    assert '6 left at their initial value (norm0.weight, norm0.bias, norm1.weight' in line
    assert '3 of the file dropped' in line
    assert path in line


def test_tables_are_resized_to_the_models_windows(nano, source, save, log):
    model = load(save(to_nvidia(source.state_dict())), nano, window_size=(4, 4, 6, 4))
    own, state = source.state_dict(), model.state_dict()
    for name, value in state.items():
        if 'stages.2.' in name and name.endswith('bias_table'):
            grid = own[name].t().reshape(1, -1, 7, 7)
            grid = F.interpolate(grid, (11, 11), mode='bicubic', align_corners=False)
            assert torch.equal(value, grid.reshape(-1, 121).t())
        else:
            assert torch.equal(value, own[name]), name
    assert any('3 of them resized' in message for message in log)


def test_a_table_of_the_right_size_is_taken_as_it_is():
    table = torch.randn(49, 2)
    assert resize_bias_table(table, 49) is table


@pytest.mark.parametrize('shape', [(50, 2), (49,), (7, 7, 2)])
def test_a_table_of_no_square_window_is_an_error(shape):
    with pytest.raises(WeightsError, match='cannot be resized'):
        resize_bias_table(torch.zeros(shape), 81)


def test_fewer_stages_take_their_part(nano, source, save, log):
    model = load(save(to_nvidia(source.state_dict())), nano, out_indices=(0, 1))
    own = source.state_dict()
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())
    dropped = len(own) - len(model.state_dict())
    assert any(f'{dropped} of the file dropped' in message for message in log)


def test_prefix_chooses_a_part_of_a_larger_model(nano, source, save):
    state = {f'teacher.{k}': v for k, v in source.state_dict().items()}
    state |= {f'student.{k}': v + 1 for k, v in source.state_dict().items()}
    path = save(state)
    assert same_outputs(load(path, nano, init={'prefix': 'teacher'}), source)
    assert not same_outputs(load(path, nano, init={'prefix': 'student.'}), source)
    with pytest.raises(WeightsError, match=r'fits none of the names .* like teacher\.stem'):
        load(path, nano, init={'prefix': 'backbone.'})


def test_less_than_half_of_the_backbone_is_an_error_and_changes_nothing(nano, source, save):
    own = source.state_dict()
    few = dict(list(own.items())[: len(own) // 2 - 1])
    model = GCViT(nano, window_size=4, init_cfg=dict(type='Pretrained', checkpoint=save(few)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=f'only {len(few)} of the {len(own)} tensors'):
        model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    half = dict(list(own.items())[: (len(own) + 1) // 2])
    assert len(load_weights(model, half, 'half').taken) == len(half)


def test_weights_of_another_network_are_an_error(nano, save):
    with pytest.raises(WeightsError, match='only 0 of'):
        load(save({'conv1.weight': torch.zeros(64, 3, 7, 7)}), nano)


def test_another_size_is_an_error_that_names_a_tensor_and_changes_nothing(nano, source, save):
    path = save(to_nvidia(source.state_dict()))
    model = GCViT(
        {**nano, 'mlp_ratio': 3}, window_size=4, init_cfg=dict(type='Pretrained', checkpoint=path)
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r'mlp.fc1.weight has shape \(16, 8\).*\(24, 8\)'):
        model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize('content', [{'state_dict': {}}, {'epoch': 3}, [torch.zeros(3)], None])
def test_a_file_without_tensors_is_an_error(nano, save, content):
    with pytest.raises(WeightsError, match='holds no tensors'):
        load(save(content), nano)


@pytest.mark.parametrize('init', [{'prefixx': 'a'}, {'map_location': 'cuda'}])
def test_unknown_key_of_init_cfg_is_named(nano, save, init):
    with pytest.raises(ValueError, match=next(iter(init))):
        load('nowhere.pth', nano, init=init)


def test_init_weights_of_another_kind_is_mmengines(nano):
    model = GCViT(nano, window_size=4, init_cfg=dict(type='Constant', layer='Linear', val=0.25))
    model.init_weights()
    assert (model.stages[0].blocks[0].mlp.fc1.weight == 0.25).all()


def test_pretrained_comes_after_other_kinds_and_is_read_once(nano, source, save):
    path = save(source.state_dict())
    constant = dict(type='Constant', layer='Linear', val=0.25)
    pretrained = dict(type='Pretrained', checkpoint=path)
    model = GCViT(nano, window_size=4, init_cfg=[pretrained, constant])
    model.init_weights()
    assert same_outputs(model.eval(), source)
    with torch.no_grad():
        model.norm3.bias.fill_(7)
    model.init_weights()
    assert (model.norm3.bias == 7).all()


def test_half_precision_files_are_cast(nano, source, save):
    path = save({k: v.bfloat16() for k, v in source.state_dict().items()})
    model = load(path, nano)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.norm3.weight, source.norm3.weight.bfloat16().float())
