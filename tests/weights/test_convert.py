"""tools/convert_weights.py writes the same network in other layouts."""

import argparse
import errno
import hashlib
import io

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.weights import convert_weights, load_pretrained, publish_model, read_checkpoint
from mmgcvit.weights.layouts import to_nvidia


@pytest.fixture
def tool(load_tool, capsys):
    """Run tools/convert_weights.py and return what it printed."""
    main = load_tool('convert_weights').main

    def run(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def published(nano, tmp_path):
    """A file in NVIDIA's format of a network with random weights, and the network."""
    model = GCViT(nano, window_size=(4, 4, 6, 4), out_indices=(3,)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = to_nvidia(model.state_dict())
    state |= {'head.weight': torch.rand(10, 64), 'head.bias': torch.rand(10)}
    state['levels.0.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16)
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    path = tmp_path / 'gcvit_nano.pth.tar'
    torch.save({'epoch': 3, 'state_dict': state, 'state_dict_ema': averaged, 'optimizer': {}}, path)
    return path, model


def maps(model, path):
    images = torch.linspace(-1, 1, 3 * 45 * 70).reshape(1, 3, 45, 70)
    load_pretrained(model, path)
    with torch.no_grad():
        return model.eval()(images)


def test_file_table_and_provenance(tool, published, tmp_path, nano):
    source, model = published
    out = tmp_path / 'new' / 'nano.safetensors'
    printed = tool(source, out)
    with safe_open(out, 'pt') as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert {'backbone.stem.conv.weight', 'head.fc.weight'} < names
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert metadata['source'] == 'gcvit_nano.pth.tar' and metadata['source_sha256'] == digest
    assert metadata['window_size'] == '4 4 6 4' and 'CC BY-NC-SA 4.0' in metadata['licence']
    rows = [line.split('  ') for line in printed.splitlines() if 'kept' in line]
    (stem,) = [row for row in rows if row[0] == 'stem']
    assert stem[-1] == 'kept, as stem.*'
    counted = [line for line in printed.splitlines() if 'kept' in line and 'including' not in line]
    numbers = [[p for p in line.split('  ') if p.strip()][1:3] for line in counted]
    assert sum(int(n.replace(',', '')) for n, _ in numbers) == len(names)
    total = sum(tensor.numel() for tensor in read_checkpoint(out)['state_dict'].values())
    assert sum(int(p.replace(',', '')) for _, p in numbers) == total
    (index,) = [line for line in printed.splitlines() if 'relative_position_index' in line]
    assert index.split()[1:] == ['1', 'skipped']
    assert 'other entries: epoch, state_dict_ema, optimizer' in printed
    assert printed.endswith(f'wrote {out}\n') and digest in printed
    loaded = GCViT(nano, window_size=(4, 4, 6, 4))
    assert torch.equal(maps(loaded, out)[-1], maps(model, source)[-1])


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.pt'])
@pytest.mark.parametrize('layout', ['nvidia', 'timm', 'mmgcvit'])
def test_round_trips_are_exact(published, tmp_path, layout, suffix):
    source, _ = published
    there, back = tmp_path / f'there{suffix}', tmp_path / f'back{suffix}'
    convert_weights(source, there, layout)
    second = convert_weights(there, back, 'nvidia').provenance
    expected = read_checkpoint(source)['state_dict']
    del expected['levels.0.blocks.0.attn.relative_position_index']
    found = read_checkpoint(back)
    assert found['state_dict'].keys() == expected.keys()
    assert all(torch.equal(found['state_dict'][name], t) for name, t in expected.items())
    assert second['source'] == there.name and second['source_layout'] == layout
    # the license of the first source
    assert 'CC BY-NC-SA 4.0' in second['licence']


def test_pth_files_contain_only_plain_values(published, tmp_path):
    out = tmp_path / 'w.pth'
    convert_weights(published[0], out)
    content = torch.load(out, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    assert content['meta']['provenance']['arch'] == 'custom'


def test_the_file_is_as_small_as_its_tensors(nano, tmp_path):
    state = GCViT(nano, window_size=4).state_dict()
    large = torch.zeros(1_000_000)
    large[: state['norm3.bias'].numel()] = state['norm3.bias']
    state['norm3.bias'] = large[: state['norm3.bias'].numel()]
    torch.save(state, tmp_path / 'large.pth')
    convert_weights(tmp_path / 'large.pth', tmp_path / 'small.pth')
    sizes = [(tmp_path / name).stat().st_size for name in ('large.pth', 'small.pth')]
    assert sizes[0] - sizes[1] > 3_900_000


def test_meta_of_a_detector_is_kept(nano, tmp_path):
    state = {f'backbone.{k}': v for k, v in GCViT(nano, window_size=4).state_dict().items()}
    state['neck.conv.weight'] = torch.rand(3)
    state['neck.conv.steps'] = torch.tensor(7)
    meta = {'dataset_meta': {'classes': ('a', 'b')}}
    torch.save({'state_dict': state, 'meta': meta}, tmp_path / 'detector.pth')
    conversion = convert_weights(
        tmp_path / 'detector.pth', tmp_path / 'new.pth', to='nvidia', dtype='float16'
    )
    found = torch.load(conversion.out, weights_only=True)
    assert found['meta'] == {**meta, 'provenance': dict(conversion.provenance)}
    assert found['state_dict']['neck.conv.steps'].dtype == torch.int64
    assert found['state_dict']['neck.conv.weight'].dtype == torch.float16
    assert found['state_dict']['backbone.patch_embed.proj.weight'].dtype == torch.float16
    only = convert_weights(tmp_path / 'detector.pth', tmp_path / 'b.pth', backbone_only=True)
    assert any(g.name == 'others: neck.conv.weight, neck.conv.steps' for g in only.groups)
    assert read_checkpoint(only.out)['state_dict'].keys() == GCViT(nano).state_dict().keys()


def test_options_of_the_command(tool, published, tmp_path):
    source, model = published
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    out = tmp_path / 'w.pth'
    printed = tool(
        source, out, '--to', 'timm', '--window', 7, 7, 14, 7, '--dtype', 'bfloat16',
        '--backbone-only', '--ema', '--prefix', '', '--sha256', digest,
    )  # fmt: skip
    state = read_checkpoint(out)['state_dict']
    assert state['stages.2.blocks.0.attn.rel_pos.relative_position_bias_table'].shape == (729, 2)
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert 'head.fc.weight' not in state
    averaged = (model.state_dict()['stem.conv.bias'] + 1).bfloat16()
    assert torch.equal(state['stem.conv1.bias'], averaged)
    assert 'resized from windows 4 4 6 4 to 7 7 14 7' in printed
    assert 'skipped: backbone only' in printed


def test_timm_loads_the_file(tmp_path):
    model = GCViT('xxtiny', window_size=(7, 7, 14, 7), query_downsamples=(3, 2, 0, 0)).eval()
    torch.save(to_nvidia(model.state_dict()), tmp_path / 'nvidia.pth')
    conversion = convert_weights(tmp_path / 'nvidia.pth', tmp_path / 'timm.safetensors', 'timm')
    assert any('6 skipped: not in the timm layout' in group.became for group in conversion.groups)
    theirs = timm.create_model('gcvit_xxtiny', num_classes=0, checkpoint_path=str(conversion.out))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found, wanted = theirs.eval().forward_features(images), model(images)[-1]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5


@pytest.mark.parametrize(
    ('out', 'arguments', 'message'),
    [
        ('w.txt', {}, r"has the suffix '\.txt', which is not supported"),
        ('there.pth', {}, r'there\.pth already exists: remove it'),
        ('w.pth', {'to': 'jax'}, "to='jax' is not allowed: choose one of nvidia, timm, mmgcvit"),
        ('w.pth', {'dtype': 'int8'}, "dtype='int8' is not allowed"),
        ('w.pth', {'window_size': (7, 7)}, r'window_size=\(7, 7\) is not allowed'),
        ('w.pth', {'window_size': (100_000,)}, r'window_size=\(100000,\) is not allowed'),
        ('w.pth', {'window_size': (0,)}, r'window_size=\(0,\) is not allowed'),
        ('w.pth', {'prefix': 'student'}, "prefix='student.' matches none"),
    ],
)
def test_mistakes(published, tmp_path, out, arguments, message):
    (tmp_path / 'there.pth').write_bytes(b'kept')
    with pytest.raises(UserError, match=message):
        convert_weights(published[0], tmp_path / out, **arguments)
    assert (tmp_path / 'there.pth').read_bytes() == b'kept'
    assert not (tmp_path / 'w.pth').exists()


def loop():
    value = []
    value.append({'in': (value,)})
    return value


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    'meta',
    [
        {'provenance': 'x'},
        {'licence': [1]},
        {'loop': loop()},
        {'args': argparse.Namespace(lr=1)},
        {'classes': np.arange(3), 'metric': np.float64(0.5)},
        'text',
    ],
    ids=str,
)
def test_unusual_metadata(nano, tmp_path, meta, suffix):
    state = GCViT(nano, window_size=4).state_dict()
    torch.save({'state_dict': state, 'meta': meta}, tmp_path / 'x.pth')
    out = convert_weights(tmp_path / 'x.pth', tmp_path / f'y{suffix}').out
    provenance = read_checkpoint(out)['meta']
    provenance = provenance.get('provenance', provenance)
    assert provenance['source'] == 'x.pth' and provenance['licence'] == 'of the source'
    torch.load(publish_model(tmp_path / 'x.pth', tmp_path / 'z.pth'), weights_only=True)


def test_values_out_of_range_of_the_dtype_are_an_error(nano, tmp_path):
    state = {k: v * 1e6 for k, v in GCViT(nano, window_size=4).state_dict().items()}
    torch.save(state, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r'NaN or infinity in .* as float16'):
        convert_weights(tmp_path / 'x.pth', tmp_path / 'y.pth', dtype='float16')
    assert not (tmp_path / 'y.pth').exists()


def test_credentials_in_a_url_are_not_published(published, server, tmp_path, monkeypatch):
    address, folder, _ = server
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (folder / 'w.pth').write_bytes(published[0].read_bytes())
    source = f'{address}/w.pth?X-Amz-Signature=SECRET#SECRET'
    conversion = convert_weights(source, tmp_path / 'out.safetensors')
    assert conversion.provenance['source'] == f'{address}/w.pth'
    assert b'SECRET' not in conversion.out.read_bytes()


def test_a_file_of_a_different_network_is_an_error(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='does not contain a GC ViT backbone: it has names like a;'):
        convert_weights(tmp_path / 'a.pth', tmp_path / 'w.pth')


def test_one_of_several_backbones_has_to_be_selected(tmp_path, nano):
    state = GCViT(nano, window_size=3).state_dict()
    both = {
        f'{name}.{key}': tensor for name in ('first', 'second') for key, tensor in state.items()
    }
    torch.save(both, tmp_path / 'both.pth')
    with pytest.raises(UserError, match=r"one with prefix='first\.' or prefix='second\.'"):
        convert_weights(tmp_path / 'both.pth', tmp_path / 'w.pth')
    convert_weights(tmp_path / 'both.pth', tmp_path / 'w.pth', prefix='second')
    written = read_checkpoint(tmp_path / 'w.pth')['state_dict']
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_a_part_of_a_backbone_is_an_error(tmp_path, nano):
    state = GCViT(nano, window_size=3).state_dict()
    part = {name: tensor for name, tensor in state.items() if 'bias_table' not in name}
    torch.save(part, tmp_path / 'part.pth')
    with pytest.raises(UserError, match='contains only part of a GC ViT backbone'):
        convert_weights(tmp_path / 'part.pth', tmp_path / 'w.pth')


def test_a_full_disk_leaves_nothing_behind(published, tmp_path, monkeypatch):
    def write(self, content):
        raise OSError(errno.ENOSPC, 'No space left on device')

    class Full(io.FileIO):
        pass

    Full.write = write
    monkeypatch.setattr('mmgcvit.files.open', lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(OSError, match=r'No space left on device: .*w\.pth'):
        convert_weights(published[0], tmp_path / 'w.pth')
    assert [path.name for path in tmp_path.iterdir()] == [published[0].name]


sides = st.integers(1, 9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    dim=st.integers(1, 3),
    depths=st.tuples(*[st.integers(1, 3)] * 4),
    ratio=st.sampled_from([0.5, 1, 2, 3]),
    scale=st.sampled_from([None, 1e-5]),
    windows=st.tuples(*[sides] * 4),
    new=st.tuples(*[sides] * 4),
    layout=st.sampled_from(['nvidia', 'timm', 'mmgcvit']),
    suffix=st.sampled_from(['.safetensors', '.pth']),
    seed=st.integers(0, 99),
)
def test_outputs_equal_those_of_the_source(
    tmp_path_factory, dim, depths, ratio, scale, windows, new, layout, suffix, seed
):
    """For any size, with any window sizes of the source and of the model that loads it."""
    folder = tmp_path_factory.mktemp('property')
    arch = dict(embed_dims=4 * dim, depths=depths, num_heads=(1, 2, 2, 4), mlp_ratio=ratio)
    arch['layer_scale_init_value'] = scale
    torch.manual_seed(seed)
    source = GCViT(arch, window_size=windows, out_indices=(3,))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({'state_dict': source.state_dict()}, folder / 'x.pth')
    convert_weights(folder / 'x.pth', folder / f'y{suffix}', layout)
    wanted, found = (
        maps(GCViT(arch, window_size=new, out_indices=(3,)), path)
        for path in (folder / 'x.pth', folder / f'y{suffix}')
    )
    assert torch.equal(found[-1], wanted[-1])
