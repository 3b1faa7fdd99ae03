"""Comparison with the plain reference on random networks and images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgcvit import GCViT
from mmgcvit.reference import gcvit
from mmgcvit.weights.layouts import to_nvidia


def random_model(arch, windows, pools, seed=0):
    """Return a model in which every parameter affects the output."""
    torch.manual_seed(seed)
    model = GCViT(arch, window_size=windows, query_downsamples=pools)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def relative_error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def compare(arch, windows, pools, shape, seed=0):
    model = random_model(arch, windows, pools, seed)
    images = torch.randn(shape)
    with torch.no_grad():
        found = model(images)
        wanted = gcvit(to_nvidia(model.state_dict()), images, arch['num_heads'], windows, pools)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 2e-5


@st.composite
def archs(draw):
    heads = draw(st.sampled_from([(1, 2, 4, 8), (2, 2, 4, 4), (1, 1, 1, 1)]))
    return {
        'embed_dims': draw(st.sampled_from([4, 8])),
        'depths': tuple(draw(st.lists(st.integers(1, 3), min_size=4, max_size=4))),
        'num_heads': heads,
        'mlp_ratio': draw(st.sampled_from([2, 3, 0.5])),
        'layer_scale_init_value': draw(st.sampled_from([None, 0.5])),
    }


def per_stage(low, high):
    return st.lists(st.integers(low, high), min_size=4, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    arch=archs(),
    windows=per_stage(1, 9),
    pools=per_stage(0, 3),
    batch=st.integers(1, 3),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_any_size_window_and_batch(arch, windows, pools, batch, height, width):
    compare(arch, windows, pools, (batch, 3, height, width))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    window=st.integers(2, 6),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    more=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
)
def test_sizes_around_multiples_of_the_window_size(window, rows, columns, more):
    arch = dict(
        embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2,
        layer_scale_init_value=None,
    )  # fmt: skip
    # n pixels along one dimension give ⌈n/4⌉ tokens in the first stage
    height, width = 4 * (rows * window + more[0]), 4 * (columns * window + more[1])
    compare(arch, (window,) * 4, (1, 1, 0, 0), (1, 3, height, width))


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('shape', [(2, 3, 64, 64), (1, 3, 50, 70), (2, 3, 37, 90)])
def test_gradients(shape, with_cp):
    """Compare gradients of all parameters and of the images, with one to four window sizes."""
    arch = dict(
        embed_dims=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 8), mlp_ratio=2,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    windows, pools = (4, 4, 3, 2), (2, 1, 1, 0)
    model = random_model(arch, windows, pools)
    model.train()
    for stage in model.stages:
        stage.recompute = 'block' if with_cp else 'cheap'
    images = torch.randn(shape)
    # float64, because the reference's own float32 gradients are off by up to 2e-4 with torch 2.1
    state = {k: v.detach().double().requires_grad_() for k, v in model.named_parameters()}
    inputs = [images.clone().requires_grad_(), images.double().requires_grad_()]
    found = model(inputs[0])
    wanted = gcvit(to_nvidia(state), inputs[1], arch['num_heads'], windows, pools)
    cotangents = [torch.randn_like(out) for out in found]
    sum((a * b).sum() for a, b in zip(found, cotangents, strict=True)).backward()
    sum((a * b).sum() for a, b in zip(wanted, cotangents, strict=True)).backward()
    assert relative_error(inputs[0].grad, inputs[1].grad) < 1e-4
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, state[name].grad) < 1e-4, name
