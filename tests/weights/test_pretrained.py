"""Pretrained weights of the backbone: loaded values, errors and log messages."""

import argparse
import hashlib
import io
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models._manipulate import adapt_input_conv

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.models.arch import ARCHS
from mmgcvit.ops import resize_bias_table
from mmgcvit.weights import Checkpoint, convert_weights
from mmgcvit.weights.checkpoint import Size, shapes_of
from mmgcvit.weights.fit import load_checkpoint
from mmgcvit.weights.layouts import to_nvidia, to_timm


@pytest.fixture
def source(nano):
    """A detection backbone with windows of 4 x 4 tokens and random values in every weight."""
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


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.module.backbone.'])
@pytest.mark.parametrize('key', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('rename', [to_nvidia, dict], ids=['nvidia', 'own'])
def test_layouts_prefixes_and_wrappings(nano, source, save, prefix, key, rename):
    state = {prefix + k: v for k, v in rename(source.state_dict()).items()}
    if 'backbone' in prefix:
        state |= {prefix.replace('backbone', 'neck') + 'conv.weight': torch.zeros(3)}
    assert same_outputs(load(save(state if key is None else {key: state}), nano), source)


def test_nvidia_classifier_with_all_its_other_entries(nano, source, save, log):
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
    (line,) = [message for message in log if ': loaded ' in message]
    assert f'loaded {len(own) - 6} tensors (0 resized' in line
    assert '6 kept at initialization: norm0.weight, norm0.bias, norm1.weight' in line
    assert '3 unexpected tensors ignored' in line
    assert path in line


def test_tables_are_resized_to_the_window_sizes_of_the_model(nano, source, save, log):
    model = load(save(to_nvidia(source.state_dict())), nano, window_size=(4, 4, 6, 4))
    own, state = source.state_dict(), model.state_dict()
    for name, value in state.items():
        if 'stages.2.' in name and name.endswith('bias_table'):
            grid = own[name].t().reshape(1, -1, 7, 7)
            grid = F.interpolate(grid, (11, 11), mode='bicubic', align_corners=False)
            assert torch.equal(value, grid.reshape(-1, 121).t())
        else:
            assert torch.equal(value, own[name]), name
    assert any('(3 resized' in message for message in log)


def test_a_table_of_the_right_size_is_unchanged():
    table = torch.randn(49, 2)
    assert resize_bias_table(table, 49) is table


@pytest.mark.parametrize('shape', [(50, 2), (48, 2), (36, 2), (49,), (7, 7, 2)])
def test_a_table_for_a_window_that_is_not_square_is_an_error(nano, source, save, shape):
    with pytest.raises(ValueError, match='cannot be resized'):
        resize_bias_table(torch.zeros(shape), 81)
    state = source.state_dict()
    state['stages.1.blocks.0.attn.relative_position_bias_table'] = torch.zeros(shape)
    message = 'cannot be resized' if len(shape) == 2 else 'contains only part of a GC ViT backbone'
    assert_refused_unchanged(message, save(state), nano)


def test_fewer_stages_load_only_their_tensors(nano, source, save, log):
    model = load(save(to_nvidia(source.state_dict())), nano, out_indices=(0, 1))
    own = source.state_dict()
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())
    dropped = len(own) - len(model.state_dict())
    assert any(f'{dropped} unexpected tensors ignored' in message for message in log)


def test_prefix_selects_a_part_of_a_larger_model(nano, source, save):
    state = {f'teacher.{k}': v for k, v in source.state_dict().items()}
    state |= {f'student.{k}': v + 1 for k, v in source.state_dict().items()}
    path = save(state)
    assert same_outputs(load(path, nano, init={'prefix': 'teacher'}), source)
    assert not same_outputs(load(path, nano, init={'prefix': 'student.'}), source)
    with pytest.raises(UserError, match=r'matches none of the names .* like teacher\.stem'):
        load(path, nano, init={'prefix': 'backbone.'})


def assert_refused_unchanged(message, path, arch, **arguments):
    """Check that loading fails with a message, and that the model is unchanged."""
    init_cfg = dict(type='Pretrained', checkpoint=path, **arguments)
    model = GCViT(arch, window_size=4, init_cfg=init_cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize('rename', [to_nvidia, to_timm, dict])
def test_half_of_a_backbone_is_an_error(nano, source, save, rename):
    own = source.state_dict()
    few = rename(dict(list(own.items())[: len(own) // 2]))
    assert_refused_unchanged('contains only part of a GC ViT backbone', save(few), nano)


@pytest.mark.parametrize(
    'missing',
    ['stem.conv.bias', 'stages.2.blocks.1.gamma2', 'stages.0.downsample.reduction.weight'],
)
def test_one_missing_tensor_is_an_error_that_names_it(nano, source, save, missing):
    state = source.state_dict()
    del state[missing]
    message = rf'1 of \d+ tensors are missing from the file: {re.escape(missing)}: '
    assert_refused_unchanged(message, save(state), nano)


def test_weights_of_a_different_network_are_an_error(nano, save):
    state = {'conv1.weight': torch.zeros(64, 3, 7, 7)}
    assert_refused_unchanged(
        r'does not contain a GC ViT backbone: it has names like conv1\.weight', save(state), nano
    )


@pytest.mark.parametrize(
    ('change', 'found', 'wanted'),
    [
        (dict(embed_dims=16), 'embed_dims 8', 'embed_dims 16'),
        (dict(depths=(2, 1, 4, 2)), 'depths 2 1 3 2', 'depths 2 1 4 2'),
        (dict(depths=(2, 1, 2, 2)), 'depths 2 1 3 2', 'depths 2 1 2 2'),
        (dict(num_heads=(1, 2, 2, 2)), 'heads 1 2 2 4', 'heads 1 2 2 2'),
        (dict(mlp_ratio=3), 'MLP channels 16 32', 'MLP channels 24 48'),
        (dict(layer_scale_init_value=None), 'with layer scale', 'no layer scale'),
    ],
)
def test_a_different_size_is_an_error_that_shows_both(nano, source, save, change, found, wanted):
    path = save(to_nvidia(source.state_dict()))
    message = f'the file is GC ViT of a custom size .*{found}.*, the model is .*{wanted}'
    assert_refused_unchanged(message, path, {**nano, **change})


@pytest.mark.parametrize('arch', ARCHS)
def test_published_sizes_are_recognized(arch):
    with torch.device('meta'):
        state = GCViT(arch, window_size=(7, 7, 14, 7)).state_dict()
    sizes = Size.of(shapes_of(state))
    assert (sizes.name, sizes.windows) == (arch, (7, 7, 14, 7))
    assert str(sizes).startswith(f'{arch} (embed_dims {ARCHS[arch].embed_dims}, depths ')
    assert sizes.depths == ARCHS[arch].depths and sizes.num_heads == ARCHS[arch].num_heads


@pytest.mark.parametrize('missing', ['norm0.weight', 'norm1.bias', 'norm3.bias'])
def test_half_a_norm_and_the_last_one_may_not_be_missing(nano, source, save, missing):
    state = source.state_dict()
    del state[missing]
    assert_refused_unchanged(f'1 of .* are missing from the file: {missing}: ', save(state), nano)


def test_flat_squeeze_excitation_of_timm_is_an_error(nano, source, save):
    state = to_timm(source.state_dict())
    state['stem.down.conv_block.se.fc1.weight'] = torch.zeros(3)
    assert_refused_unchanged(r'se\.fc1\.weight has shape \(3,\)', save(state), nano)


def test_values_out_of_range_of_the_models_dtype_are_an_error(nano, source, save):
    state = {k: v * 1e6 for k, v in source.state_dict().items()}
    model = GCViT(nano, window_size=4).half()
    with pytest.raises(UserError, match=r'NaN or infinity in .* as torch\.float16'):
        load_checkpoint(model, Checkpoint.from_state(state, 'here'))


def test_too_few_stages_are_an_error(nano, source, save):
    state = {k: v for k, v in source.state_dict().items() if '3.' not in k[:9]}
    del state['stages.2.downsample.norm1.weight']
    assert_refused_unchanged('contains only part of .* with out_indices', save(state), nano)


def test_different_input_channels_are_an_error_that_names_the_argument(nano, source, save):
    state = source.state_dict()
    state['stem.conv.weight'] = torch.zeros(8, 4, 3, 3)
    message = 'set adapt_input=True in the init_cfg .* or set in_channels'
    assert_refused_unchanged(message, save(state), nano)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6, 13])
def test_the_stem_is_adapted_to_the_input_channels_as_timm_does(
    nano, source, save, log, channels, dtype
):
    state = {name: tensor.to(dtype) for name, tensor in source.state_dict().items()}
    found = load(save(state), nano, init=dict(adapt_input=True), in_channels=channels).state_dict()
    for name, tensor in state.items():
        if name == 'stem.conv.weight':
            tensor = adapt_input_conv(channels, tensor)
        assert torch.equal(found[name], tensor.float()), name
    (line,) = [line for line in log if ': loaded ' in line]
    adapted = 'stem.conv.weight adapted to the input channels'
    assert (adapted in line) == (channels != 3)


def test_adapted_input_channels_give_the_same_outputs_for_gray_images(nano, source, save):
    path = save(source.state_dict())
    gray = torch.randn(1, 1, 45, 70)
    with torch.no_grad():
        wanted = source(gray.expand(-1, 3, -1, -1))
        for channels in (1, 6):
            model = load(path, nano, init=dict(adapt_input=True), in_channels=channels)
            found = model(gray.expand(-1, channels, -1, -1))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def licenses(log):
    return [line for line in log if 'CC BY-NC-SA 4.0' in line]


def test_the_license_of_nvidias_weights_is_logged_once(nano, source, save, log, tmp_path):
    path = save(to_nvidia(source.state_dict()))
    load(path, nano)
    (line,) = licenses(log)
    assert path in line and 'and models fine-tuned from them' in line
    # conversion to another layout copies the license
    out = convert_weights(path, tmp_path / 'own.safetensors').out
    log.clear()
    load(str(out), nano)
    assert len(licenses(log)) == 1
    log.clear()
    load(save(source.state_dict()), nano)
    assert not licenses(log)


def saves_float8():
    try:
        torch.save(torch.zeros(1).to(torch.float8_e5m2), io.BytesIO())
    except KeyError:  # of torch 2.1
        return False
    return True


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('norm0.bias', lambda t: t * float('nan'), r'contains NaN or infinity in norm0\.bias'),
        ('stem.conv.weight', lambda t: t / 0, r'contains NaN or infinity in stem\.conv\.weight'),
        ('norm3.bias', lambda t: t.long(), r'norm3\.bias has dtype torch\.int64'),
        ('norm3.bias', lambda t: t.cfloat(), r'norm3\.bias has dtype torch\.complex64'),
        ('stem.conv.bias', lambda t: t.to_sparse(), r'stem\.conv\.bias is sparse'),
        pytest.param(
            'norm3.bias',
            lambda t: t.to(torch.float8_e5m2),
            r'has dtype torch\.float8_e5m2',
            marks=pytest.mark.skipif(not saves_float8(), reason='this torch cannot save float8'),
        ),
        (
            'norm3.bias',
            lambda t: t[:1].clone().expand(64),
            r'norm3\.bias is an expanded view of fewer values',
        ),
        ('stem.conv.weight', lambda t: t.sum(), 'contains only part of a GC ViT backbone'),
        ('stages.0.blocks.0.mlp.fc1.weight', lambda t: t[0], 'contains only part of'),
        ('norm1.bias', lambda t: t[:-1], r'norm1\.bias has shape \(15,\), expected \(16,\)'),
        (
            'stages.0.blocks.0.attn.relative_position_bias_table',
            lambda t: t[:-1],
            'cannot be resized',
        ),
    ],
)
def test_tensors_that_are_not_weights_are_errors(nano, source, save, name, change, message):
    state = source.state_dict()
    state[name] = change(state[name])
    assert_refused_unchanged(message, save(state), nano)


def test_from_24_token_windows_back_to_imagenets(nano, save):
    source = GCViT(nano, window_size=24)
    model = load(save(source.state_dict()), nano, window_size=(7, 7, 14, 7))
    for stage, window in enumerate((7, 7, 14, 7)):
        name = f'stages.{stage}.blocks.0.attn.relative_position_bias_table'
        grid = source.state_dict()[name].t().reshape(1, -1, 47, 47)
        side = 2 * window - 1
        grid = F.interpolate(grid, (side, side), mode='bicubic', align_corners=False)
        assert torch.equal(model.state_dict()[name], grid.reshape(-1, side * side).t())


@pytest.mark.parametrize('key', ['state_dict_ema', 'model_ema'])
def test_ema_weights_are_loaded_on_request(nano, source, save, log, key):
    averaged = {f'module.{k}': v + 1 for k, v in to_nvidia(source.state_dict()).items()}
    path = save({'state_dict': to_nvidia(source.state_dict()), key: averaged})
    assert same_outputs(load(path, nano), source)
    assert any(f'also contains EMA weights ({key}); set ema=True' in line for line in log)
    found = load(path, nano, init=dict(ema=True)).state_dict()
    assert all(torch.equal(found[k], v + 1) for k, v in source.state_dict().items())


def test_missing_ema_weights_are_an_error(nano, source, save):
    state = source.state_dict()
    for content in ({'state_dict': state}, {'ema_state_dict': state}):
        assert_refused_unchanged('has no EMA weights', save(content), nano, ema=True)
    alone = save({'state_dict_ema': state})
    assert_refused_unchanged('contains only EMA weights: set ema=True', alone, nano)
    # mmengine stores EMA weights as state_dict
    hooked = save({'state_dict': state, 'ema_state_dict': {'module.a': torch.zeros(1)}})
    assert same_outputs(load(hooked, nano, init=dict(ema=True)), source)


def test_the_digest_is_compared(nano, source, save):
    path = save(source.state_dict())
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert same_outputs(load(path, nano, init=dict(sha256=digest.upper())), source)
    assert_refused_unchanged(
        f'SHA-256 mismatch for .*: expected {"0" * 64}, got {digest}', path, nano, sha256='0' * 64
    )
    assert_refused_unchanged('expected the 64 hexadecimal digits', path, nano, sha256=digest[:8])


@pytest.mark.parametrize('content', [{'state_dict': {}}, {'epoch': 3}, [torch.zeros(3)], None])
def test_a_file_without_tensors_is_an_error(nano, save, content):
    with pytest.raises(UserError, match='contains no tensors'):
        load(save(content), nano)


@pytest.mark.parametrize(
    'init', [{'prefixx': 'a'}, {'map_location': 'cuda'}, {'ema': 'yes'}, {'adapt_input': 1}]
)
def test_unknown_keys_and_values_of_init_cfg_are_errors(nano, save, init):
    with pytest.raises(ValueError, match=next(iter(init))):
        load('nowhere.pth', nano, init=init)


def test_other_types_of_init_cfg_are_left_to_mmengine(nano):
    model = GCViT(nano, window_size=4, init_cfg=dict(type='Constant', layer='Linear', val=0.25))
    model.init_weights()
    assert (model.stages[0].blocks[0].mlp.fc1.weight == 0.25).all()


def test_pretrained_comes_after_other_types_and_is_read_once(nano, source, save):
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


def test_different_attention_types_are_an_error_that_names_the_argument(nano):
    source, model = GCViT(nano), GCViT(nano, attention_types=('local',))
    with pytest.raises(
        UserError, match='set attention_types to those that the file was trained with'
    ):
        load_checkpoint(model, Checkpoint.from_state(source.state_dict(), 'file'))
