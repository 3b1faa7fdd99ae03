"""Every constructor argument has an effect, and errors name bad values and the remedy."""

import pytest
import torch
import torch.nn.functional as F
from kept import gelu_outputs

from mmgcvit import GCViT, reference
from mmgcvit.models import ARCHS
from mmgcvit.weights.layouts import to_nvidia

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def outputs(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


def built(arch, **arguments):
    """Build with the same seed, so weights of equal shape have equal initial values."""
    torch.manual_seed(0)
    return GCViT(arch, **arguments).eval()


def differs(a, b):
    return any(x.shape != y.shape or not torch.allclose(x, y) for x, y in zip(a, b, strict=True))


def copied(source, model):
    """Copy weights of equal shape from ``source`` to ``model`` and zero its position biases."""
    theirs, ours = source.state_dict(), model.state_dict()
    same = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    model.load_state_dict(same, strict=False)
    for name, parameter in model.named_parameters():
        if name.endswith('relative_position_bias_table'):
            torch.nn.init.zeros_(parameter)
    return model


def test_each_key_of_arch_has_an_effect(nano):
    model = built({**nano, 'embed_dims': 16}, window_size=4)
    assert [x.shape[1] for x in outputs(model)] == [16, 32, 64, 128]
    model = built({**nano, 'depths': (2, 2, 3, 1)})
    assert [len(stage.blocks) for stage in model.stages] == [2, 2, 3, 1]
    model = built({**nano, 'mlp_ratio': 3})
    assert [stage.blocks[0].mlp.fc1.out_features for stage in model.stages] == [24, 48, 96, 192]
    # the remaining two keys do not change the shape of any existing weight
    plain = built(nano, window_size=4)
    assert not differs(
        outputs(copied(plain, built(nano, window_size=4))), outputs(copied(plain, plain))
    )
    for other in ({'num_heads': (2, 2, 2, 4)}, {'layer_scale_init_value': 0.1}):
        model = built({**nano, **other}, window_size=4)
        if 'num_heads' in other:
            copied(plain, model)
        assert differs(outputs(plain), outputs(model)), other


def test_named_arch_uses_the_row_of_the_table():
    with torch.device('meta'):
        model = GCViT('small2')
    assert model.out_channels == (96, 192, 384, 768)
    assert [len(stage.blocks) for stage in model.stages] == [3, 4, 23, 5]
    assert model.stages[2].blocks[0].attn.relative_position_bias_table.shape == (47**2, 12)
    assert model.stages[2].blocks[0].mlp.fc1.out_features == 3 * 384
    assert model.stages[0].blocks[0].gamma1.shape == (96,)
    assert ARCHS['small2'].layer_scale_init_value == 1e-5
    assert model.stages[3].blocks[-1].drop_path.drop_rate == 0.35


def test_in_channels(nano):
    model = built(nano, in_channels=5)
    assert outputs(model, torch.randn(1, 5, 32, 32))[0].shape == (1, 8, 8, 8)


def test_window_size_one_for_all_or_one_per_stage(nano):
    same, four = built(nano, window_size=4), built(nano, window_size=(4, 4, 4, 4))
    assert not differs(outputs(same), outputs(four))
    mixed = built(nano, window_size=(4, 4, 8, 4))
    tables = [s.blocks[0].attn.relative_position_bias_table.shape[0] for s in mixed.stages]
    assert tables == [49, 49, 225, 49]
    same = copied(same, same)
    assert differs(outputs(same), outputs(copied(same, mixed)))


def test_query_downsamples(nano):
    model = built(nano, window_size=4, query_downsamples=(1, 0, 0, 2))
    assert [len(s.query_generator or ()) for s in model.stages] == [1, 0, 1, 2]
    # 0 and 1 give the same layers and weights, but only 1 pools
    none, one = (built(nano, window_size=4, query_downsamples=(n,) * 4) for n in (0, 1))
    assert differs(outputs(none), outputs(copied(none, one)))


def test_out_indices_select_outputs_channels_and_strides(nano):
    everything = outputs(built(nano, window_size=4))
    model = built(nano, window_size=4, out_indices=(0, 2))
    assert model.out_channels == (8, 32)
    assert model.strides == (4, 16)
    full = built(nano, window_size=4)
    model.load_state_dict({k: v for k, v in full.state_dict().items() if k in model.state_dict()})
    found = outputs(model)
    assert len(found) == 2
    assert torch.equal(found[0], everything[0])
    assert torch.equal(found[1], everything[2])


@pytest.mark.parametrize(
    ('size', 'windows'),
    [(224, (7, 7, 14, 7)), (384, (12, 12, 24, 12)), (512, (16, 16, 32, 16)), (96, (3, 3, 6, 3))],
)
def test_image_size_gives_the_settings_of_the_published_classifiers(nano, size, windows):
    arch = {**nano, 'depths': (2, 2, 2, 2)}
    model, explicit = (
        built(arch, **arguments)
        for arguments in (
            dict(image_size=size),
            dict(window_size=windows, query_downsamples=(3, 2, 0, 0), out_indices=(3,)),
        )
    )
    assert not differs(outputs(model), outputs(explicit))
    assert [stage.window_size for stage in model.stages] == list(windows)
    assert [len(stage.query_generator) for stage in model.stages] == [3, 2, 1, 1]
    assert model.out_indices == (3,)


def test_explicit_arguments_override_those_of_image_size(nano):
    model = built(nano, image_size=224, window_size=8, out_indices=(1, 3))
    assert [stage.window_size for stage in model.stages] == [8] * 4
    assert len(model.stages[0].query_generator) == 3
    assert model.out_indices == (1, 3)
    model = built({**nano, 'depths': (2, 2, 2, 2)}, image_size=224, query_downsamples=(1, 0, 2, 0))
    assert [len(stage.query_generator) for stage in model.stages] == [1, 1, 2, 1]
    assert [stage.window_size for stage in model.stages] == [7, 7, 14, 7]


def test_only_modules_that_outputs_need_are_built(nano):
    model = built(nano, out_indices=(1,))
    assert len(model.stages) == 2
    assert model.stages[1].downsample is None
    # the second stage of this arch has a single block, which is local
    assert model.stages[1].query_generator is None
    assert not any(name.startswith(('norm0', 'norm2')) for name, _ in model.named_parameters())


def test_drop_path_rate_increases_linearly_and_defaults_to_the_value_of_arch(nano):
    def rates(model):
        return [b.drop_path.drop_rate for s in model.stages for b in s.blocks]

    assert rates(built(nano)) == [0] * 8
    assert rates(built(nano, drop_path_rate=0.35)) == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    )
    # rates are computed over all four stages, no matter which of them are built
    assert rates(built(nano, drop_path_rate=0.35, out_indices=(0,))) == pytest.approx([0, 0.05])
    with torch.device('meta'):
        assert rates(GCViT('xxtiny'))[-1] == 0.2


def test_drop_path_drops_branches_per_sample_in_training(nano):
    torch.manual_seed(0)
    model = GCViT(nano, window_size=4, drop_path_rate=0.9)
    block = model.stages[3].blocks[-1].train()
    x = torch.randn(200, 30, 64)

    def dropped_samples():
        return (block.drop_path(x) == 0).flatten(1)

    dropped = dropped_samples()
    assert 0.82 < dropped.all(1).float().mean() < 0.97
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert not torch.equal(dropped_samples().all(1), dropped.all(1))
    kept = block.drop_path(x)
    assert torch.allclose(kept[kept != 0], (x * 10)[kept != 0])


@pytest.mark.parametrize('name', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_dropout_is_only_active_in_training(nano, name):
    plain = outputs(built(nano, window_size=4))
    model = built(nano, window_size=4, **{name: 0.5})
    assert not differs(plain, outputs(model))
    assert differs(plain, outputs(model.train()))


def test_drop_rate_applies_after_stem_projection_and_mlp(nano):
    model = built(nano, drop_rate=0.25)
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert set(rates.values()) == {0.25}
    assert {n.split('.')[-2] if '.' in n else n for n in rates} == {'drop', 'attn', 'mlp'}


PATTERNS = {
    ('local',): ['LL', 'L', 'LLL', 'LL'],
    ('global',): ['GG', 'G', 'GGG', 'GG'],
    ('local', 'global'): ['LG', 'L', 'LGL', 'LG'],
    ('global', 'local'): ['GL', 'G', 'GLG', 'GL'],
    ('local', 'local', 'global'): ['LL', 'L', 'LLG', 'LL'],
    ('local', 'global', 'global', 'local'): ['LG', 'L', 'LGG', 'LG'],
}


def random_network(arch, **arguments):
    """A network without zero weights, so that all branches contribute to the output."""
    torch.manual_seed(0)
    model = GCViT(arch, window_size=4, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def plain_outputs(model, kinds, num_heads, images):
    """Outputs of the reference for the given block kinds, one letter per block."""
    weights, outputs = to_nvidia(model.state_dict()), []
    x = F.conv2d(images, *reference._layer(weights, 'patch_embed.proj'), stride=2, padding=1)
    x = reference._downsample(weights, 'patch_embed.conv_down', x.permute(0, 2, 3, 1))
    for i, stage in enumerate(kinds):
        name = f'levels.{i}'
        pools = (3, 2, 1, 0)[i]
        query = reference._global_query(weights, f'{name}.q_global_gen', x, 4, pools)
        for j, kind in enumerate(stage):
            block = f'{name}.blocks.{j}'
            block_query = query if kind == 'G' else None
            x = reference._block(weights, block, x, num_heads[i], 4, block_query)
        outputs.append(reference._norm(weights, f'norm{i}', x).permute(0, 3, 1, 2))
        if i < 3:
            x = reference._downsample(weights, f'{name}.downsample', x)
    return outputs


@pytest.mark.parametrize('attention', PATTERNS, ids='-'.join)
def test_attention_types_repeat_in_each_stage(nano, attention):
    model, kinds = random_network(nano, attention_types=attention), PATTERNS[attention]
    for stage, letters in zip(model.stages, kinds, strict=True):
        # parameters of an unused query generator would receive no gradient
        assert (stage.query_generator is not None) == ('G' in letters)
        widths = [block.attn.qkv.out_features for block in stage.blocks]
        dim = stage.blocks[0].norm1.normalized_shape[0]
        assert widths == [dim * {'L': 3, 'G': 2}[letter] for letter in letters]
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        wanted = plain_outputs(model, kinds, nano['num_heads'], images)
    for a, b in zip(outputs(model, images), wanted, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 2e-5
    sum(out.square().mean() for out in model.train()(images)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_attention_types_alternate_by_default_and_may_be_a_list(nano):
    default = random_network(nano)
    for attention in (('local', 'global'), ['local', 'global'], ['local', 'global'] * 2):
        model = random_network(nano, attention_types=attention)
        assert model.state_dict().keys() == default.state_dict().keys()
        assert not differs(outputs(model), outputs(default))
    assert differs(outputs(random_network(nano, attention_types=('local',))), outputs(default))


def step_of(nano, **arguments):
    """Number of elements saved for the backward pass, outputs and gradients of a training step."""
    model = random_network(nano, drop_path_rate=0.3, drop_rate=0.2, **arguments).train()
    images, kept = torch.randn(2, 3, 50, 70), []
    torch.manual_seed(1)
    pack = lambda t: kept.append(t.numel()) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = model(images)
    sum(out.square().mean() for out in found).backward()
    return sum(kept), found, {name: p.grad for name, p in model.named_parameters()}


def test_recompute_changes_only_memory(nano):
    steps = {policy: step_of(nano, recompute=policy) for policy in ('none', 'cheap', 'block')}
    for _, found, gradients in steps.values():
        assert all(torch.equal(a, b) for a, b in zip(found, steps['none'][1], strict=True))
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, steps['none'][2][name]), name
    none, cheap, block = (step[0] for step in steps.values())
    assert block < 0.65 * cheap
    # per token: C for each of the two norms and 2·C for GELU; two images; 2, 1, 3 and 2 blocks
    tokens, dims = (13 * 18, 7 * 9, 4 * 5, 2 * 3), (8, 16, 32, 64)
    of_stages = zip(nano['depths'], tokens, dims, strict=True)
    outputs_of_cheap_layers = sum(2 * depth * n * 4 * dim for depth, n, dim in of_stages)
    outputs_of_cheap_layers += sum(
        gelu_outputs(GCViT(nano, window_size=4), torch.randn(2, 3, 50, 70))
    )
    # versions of torch that do not expose the active hooks save everything
    can = hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks')
    assert none - cheap == (outputs_of_cheap_layers if can else 0)


@pytest.mark.parametrize(
    ('arguments', 'same'),
    [
        ({}, 'cheap'),
        ({'with_cp': False}, 'cheap'),
        ({'with_cp': True}, 'block'),
        ({'with_cp': True, 'recompute': 'none'}, 'block'),
        ({'with_cp': False, 'recompute': 'none'}, 'none'),
    ],
)
def test_with_cp_recomputes_whole_blocks(nano, arguments, same):
    found, wanted = step_of(nano, **arguments), step_of(nano, recompute=same)
    assert found[0] == wanted[0]


BAD = {
    'arch': ['huge', 3, {}, {'embed_dims': 8}],
    'in_channels': [0, -1, 2.5, True],
    'window_size': [0, 2.5, (7, 7, 7), (7, 7, 0, 7), 'all', True],
    'query_downsamples': [3, (3, 2, 1), (3, 2, 1, -1), (3, 2, 1, 0.5)],
    'out_indices': [(), (4,), (1, 0), (0, 0), (-1,), 2, (0.0,)],
    'drop_path_rate': [-0.1, 1, 1.5, 'some'],
    'drop_rate': [-0.1, 1.0, None],
    'attn_drop_rate': [-0.1, 1.0, None],
    'frozen_stages': [-2, 5, 1.5, None],
    'with_cp': ['no', 1, 0, None],
    'attention_types': [
        'x',
        '',
        [],
        (),
        'local',
        'global',
        None,
        3,
        ('local', 'x'),
        (None,),
        {'local'},
    ],
    'image_size': [0, 31, 225, -32, 224.0, (224, 224), True],
    'recompute': ['all', '', 'Cheap', None, True, 0, ('cheap',)],
}


@pytest.mark.parametrize(('name', 'value'), [(n, v) for n, vs in BAD.items() for v in vs])
def test_error_names_bad_value_and_remedy(nano, name, value):
    with pytest.raises(ValueError, match=name) as error:
        GCViT(**{'arch': nano, name: value})
    assert repr(value) in str(error.value)
    assert 'give' in str(error.value) or 'choose' in str(error.value)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('embed_dims', 0),
        ('embed_dims', 8.5),
        ('depths', (2, 2, 2)),
        ('depths', (2, 0, 2, 2)),
        ('num_heads', (3, 2, 2, 4)),
        ('num_heads', 2),
        ('mlp_ratio', 0),
        ('mlp_ratio', 'four'),
        ('mlp_ratio', float('nan')),
        ('mlp_ratio', 0.01),
        ('layer_scale_init_value', float('inf')),
        ('layer_scale_init_value', True),
    ],
)
def test_error_names_bad_value_in_arch(nano, key, value):
    with pytest.raises(ValueError, match=rf"arch\['{key}'\]"):
        GCViT({**nano, key: value})


def test_error_names_missing_and_unknown_keys_of_arch(nano):
    del nano['mlp_ratio']
    nano['mlp_ration'] = 3
    with pytest.raises(ValueError, match=r"missing keys \['mlp_ratio'\].*\['mlp_ration'\]"):
        GCViT(nano)


def test_frozen_stages_must_exist(nano):
    with pytest.raises(ValueError, match='from -1 to 2'):
        GCViT(nano, out_indices=(0, 1), frozen_stages=3)


def test_error_names_unknown_argument(nano):
    with pytest.raises(TypeError, match='window_sizes'):
        GCViT(nano, window_sizes=7)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32), (1, 3, 0, 32), (1, 3, 4, 4, 4)])
def test_error_for_wrong_input_shape(nano, shape):
    with pytest.raises(ValueError, match=r'takes \(B, 3, H, W\)'):
        GCViT(nano)(torch.zeros(shape))
