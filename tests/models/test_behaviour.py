"""Independence of images, gradients, freezing, parameter names, dtypes and memory formats."""

import copy
import math
import warnings

import pytest
import torch
from nano import NANO
from torch.nn.parallel import DistributedDataParallel

from mmgcvit import GCViT
from mmgcvit.weights.layouts import to_nvidia


@pytest.fixture
def model(nano):
    model = GCViT(nano, window_size=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (31, 33), (64, 64), (65, 130)])
@pytest.mark.parametrize('batch', [0, 1, 3])
def test_shapes_and_memory_format_of_outputs(model, size, batch):
    maps = model.eval()(torch.randn(batch, 3, *size))
    for i, out in enumerate(maps):
        sides = tuple(math.ceil(side / 2 ** (i + 2)) for side in size)
        assert out.shape == (batch, 8 * 2**i, *sides)
        assert out.is_contiguous()
        assert out.isfinite().all()


def test_images_of_a_batch_are_independent(model):
    # large enough for several windows per image in the first stages
    images = torch.randn(3, 3, 70, 90)
    with torch.no_grad():
        together = model.eval()(images)
        alone = [model(image[None]) for image in images]
    for i, out in enumerate(together):
        assert torch.allclose(out, torch.cat([maps[i] for maps in alone]), atol=1e-5)


def gradients(model, images):
    model.zero_grad()
    loss = sum(out.square().mean() for out in model(images))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,), (0, 2), (1,)])
@pytest.mark.parametrize('with_cp', [False, True])
def test_every_parameter_gets_a_gradient(nano, out_indices, with_cp):
    model = GCViT(nano, window_size=4, out_indices=out_indices, with_cp=with_cp)
    for name, gradient in gradients(model, torch.randn(2, 3, 64, 80)).items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_checkpointing_changes_only_memory(nano, model):
    recomputing = GCViT(nano, window_size=4, with_cp=True, drop_path_rate=0.3, drop_rate=0.2)
    keeping = GCViT(nano, window_size=4, drop_path_rate=0.3, drop_rate=0.2)
    recomputing.load_state_dict(model.state_dict())
    keeping.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 40, 64)
    found = []
    saved = []
    for network in (keeping, recomputing):
        torch.manual_seed(1)
        kept = []
        pack = lambda t, kept=kept: kept.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            outputs = network(images)
        saved.append(sum(kept))
        torch.manual_seed(1)
        found.append((outputs, gradients(network, images)))
    assert saved[1] < 0.65 * saved[0]
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(a, b)
    for name in found[0][1]:
        assert torch.allclose(found[0][1][name], found[1][1][name]), name


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 4])
def test_frozen_stages_get_no_gradient_and_stay_in_eval_mode(nano, frozen):
    model = GCViT(nano, window_size=4, frozen_stages=frozen, drop_rate=0.1)
    assert model.train() is model
    names = ['stem'] * (frozen >= 0) + [f'stages.{i}' for i in range(max(frozen, 0))]
    for name, found in gradients(model, torch.randn(1, 3, 48, 64)).items():
        is_frozen = any(name.startswith(f'{start}.') for start in names)
        assert (found is None) == is_frozen, name
    for name, module in model.named_modules():
        is_frozen = any(f'{name}.'.startswith(f'{start}.') for start in names)
        if name.startswith(('stem', 'stages.')):
            assert module.training != is_frozen, name
    if frozen >= 0:
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(model.drop(model.stem(x)), model.stem(x))
    model.eval()
    assert not any(module.training for module in model.modules())


def test_forward_changes_no_setting_and_copies_are_independent(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    attributes = {k: v for k, v in vars(model).items() if not k.startswith('_')}
    twin = copy.deepcopy(model)
    gradients(model, torch.randn(1, 3, 32, 32))
    assert {k: v for k, v in vars(model).items() if not k.startswith('_')} == attributes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in twin.parameters())


def test_parameter_names_that_users_checkpoints_rely_on():
    with torch.device('meta'):
        shapes = {k: tuple(v.shape) for k, v in GCViT('small').state_dict().items()}
    pinned = {
        'stem.conv.bias': (96,),
        'stem.downsample.mbconv.dwconv.weight': (96, 1, 3, 3),
        'stages.0.blocks.0.attn.qkv.weight': (288, 96),
        'stages.0.blocks.1.attn.qkv.weight': (192, 96),
        'stages.2.blocks.18.attn.relative_position_bias_table': (2209, 12),
        'stages.1.query_generator.1.mbconv.se.fc1.weight': (48, 192),
        'stages.0.downsample.reduction.weight': (192, 96, 3, 3),
        'stages.3.blocks.4.gamma2': (768,),
        'stages.3.blocks.4.mlp.fc2.weight': (768, 1536),
        'norm3.weight': (768,),
    }
    assert {name: shapes.get(name) for name in pinned} == pinned
    # one parameter per published tensor, and no other entries in a checkpoint
    assert len(shapes) == 539


def test_initial_values(nano):
    model = GCViT({**nano, 'embed_dims': 64}, window_size=8)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith('gamma1'):
            assert (value == 0.5).all()
        elif 'norm' in name:
            assert (value == (1 if name.endswith('weight') else 0)).all(), name
        elif name.endswith('bias') and 'conv' not in name:
            assert (value == 0).all(), name
        elif name.endswith(('qkv.weight', 'fc1.weight', 'fc2.weight', 'proj.weight', 'table')):
            assert float(value.std()) == pytest.approx(0.02, rel=0.2), name
    assert float(state['stem.conv.weight'].abs().max()) == pytest.approx(27**-0.5, rel=0.02)
    state = {k: v.clone() for k, v in state.items()}
    model.init_weights()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def computes_in_float16():
    try:
        torch.conv2d(torch.zeros(1, 1, 3, 3).half(), torch.zeros(1, 1, 3, 3).half())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(model, dtype):
    if dtype is torch.float16 and not computes_in_float16():
        pytest.skip('this torch has no convolutions in float16 on a CPU')
    images = torch.randn(1, 3, 40, 72)
    with torch.no_grad():
        wanted = model.eval()(images)
        if dtype is torch.bfloat16:
            with torch.autocast('cpu', dtype):
                found = model(images)
        else:
            found = model.to(dtype)(images.to(dtype))
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    for a, b in zip(found, wanted, strict=True):
        assert float((a.float() - b).abs().max() / b.abs().max()) < tolerance


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_compiling'),  # exists since torch 2.3
    reason='torch.compile of torch 2.1 divides the network into several graphs',
)
@pytest.mark.slow
def test_compiles_into_one_graph(nano):
    """Dynamo traces the complete network, with and without padding. Nothing is compiled."""
    model = GCViT(nano, window_size=4, out_indices=(0,)).eval()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for size in ((32, 32), (37, 45)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert torch.allclose(compiled(images)[0], model(images)[0], atol=1e-5)


def test_replaced_pointwise_convolution_is_called(nano):
    network = GCViT(nano, window_size=4).eval()
    mbconv = network.stem.downsample.mbconv
    images = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        wanted = network(images)
        handle = mbconv.pwconv.register_forward_hook(lambda module, args, out: 0 * out)
        assert not torch.allclose(network(images)[0], wanted[0], atol=1e-3)
        handle.remove()
        mbconv.pwconv = torch.nn.Sequential(mbconv.pwconv)
        for a, b in zip(network(images), wanted, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 2e-5


def test_mmengine_counts_all_matrix_products(nano):
    from mmengine.analysis import get_model_complexity_info
    from torch.utils.flop_counter import FlopCounterMode

    network = GCViT(nano, window_size=4).eval()
    found = get_model_complexity_info(network, (3, 64, 64), show_table=False, show_arch=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 64, 64))
    # mmengine also counts norms and interpolation
    assert found['flops'] > counter.get_total_flops() / 2


def test_features_are_channels_last_after_the_first_convolution(nano):
    network, seen = GCViT(nano, window_size=4), []
    network.stem.conv.register_forward_hook(lambda module, args, out: seen.append(out))
    network(torch.randn(1, 3, 40, 50))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def as_built(model):
    return model


def loaded(model):
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    other = GCViT(PAIRS_OF_HEADS, window_size=4)
    other.load_state_dict(state)
    return other


def pretrained(model, path):
    torch.save(to_nvidia(model.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    other = GCViT(PAIRS_OF_HEADS, window_size=4, init_cfg=init_cfg)
    other.init_weights()
    return other


def through_half(model):
    return model.half().float()


def through_meta(model):
    probe = torch.empty(2, 1, 3, 3, device='meta').to(memory_format=torch.channels_last)
    if torch.empty_like(probe, device='cpu').stride() != probe.stride():
        pytest.skip('to_empty of this torch forgets strides')
    with torch.device('meta'):
        other = GCViT(PAIRS_OF_HEADS, window_size=4)
    other.to_empty(device='cpu').load_state_dict(model.state_dict())
    return other


PAIRS_OF_HEADS = {**NANO, 'num_heads': (2, 2, 4, 4)}


def strides_of_gradients(model):
    """Map names of parameters to their strides and their gradients' strides where these differ."""
    # several windows, some of which need padding
    gradients(model, torch.randn(2, 3, 50, 70))
    strides = {name: (p.stride(), p.grad.stride()) for name, p in model.named_parameters()}
    return {name: (a, b) for name, (a, b) in strides.items() if a != b}


@pytest.mark.parametrize(
    'way', [as_built, copy.deepcopy, loaded, pretrained, through_half, through_meta]
)
def test_gradients_have_the_strides_of_the_parameters(way, tmp_path):
    """DistributedDataParallel compares strides even where they do not affect the memory layout."""
    arguments = (tmp_path / 'file.pth',) if way is pretrained else ()
    model = way(GCViT(PAIRS_OF_HEADS, window_size=4), *arguments)
    assert strides_of_gradients(model) == {}


@pytest.mark.parametrize('backend', ['plain', 'cpu', 'fused'])
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
@pytest.mark.parametrize('num_heads', [(1, 1, 1, 1), (2, 4, 8, 16)])
def test_gradient_strides_with_each_backend_and_recompute_policy(
    monkeypatch, backend, recompute, num_heads
):
    monkeypatch.setattr('mmgcvit.ops.attention.forced_backend', backend)
    model = GCViT({**NANO, 'num_heads': num_heads}, window_size=4, recompute=recompute)
    assert strides_of_gradients(model) == {}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/store', rank=0, world_size=1)
    # by default, torch gives this warning only once per process
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    torch.distributed.destroy_process_group()


def train_in_ddp(model, gradient_as_bucket_view):
    """Train for two steps and turn warnings about strides into errors."""
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=gradient_as_bucket_view)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'Grad strides do not match bucket view strides')
        for _ in range(2):
            optimizer.zero_grad()
            sum(out.square().mean() for out in ddp(torch.randn(1, 3, 64, 96))).backward()
            optimizer.step()


@pytest.mark.parametrize('gradient_as_bucket_view', [False, True])
@pytest.mark.parametrize('arch', ['nano', 'xxtiny'])
def test_ddp_gives_no_warning(process_group, nano, arch, gradient_as_bucket_view):
    model = GCViT(nano, window_size=4) if arch == 'nano' else GCViT(arch)
    train_in_ddp(model, gradient_as_bucket_view)


@pytest.mark.parametrize('gradient_as_bucket_view', [False, True])
def test_ddp_warns_about_unprepared_parameters(process_group, monkeypatch, gradient_as_bucket_view):
    """This shows that the previous test can fail."""
    monkeypatch.setattr('mmgcvit.ops.prepare_parameters', lambda network: None)
    with pytest.raises(UserWarning, match='Grad strides do not match'):
        train_in_ddp(GCViT(PAIRS_OF_HEADS, window_size=4), gradient_as_bucket_view)
