"""All backends of window attention, and their selection."""

import dataclasses
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from definition import HEADS, attention, attention_and_weights, by_head, random_inputs, tensors_of
from torch.autograd import forward_ad

from mmgcvit import GCViT
from mmgcvit.ops import attention_probabilities, by_region, window_attention
from mmgcvit.ops.windows import Windows
from mmgcvit.reference import gcvit
from mmgcvit.weights.layouts import to_nvidia

MODULE = importlib.import_module('mmgcvit.ops.attention')
BACKENDS = MODULE.BACKENDS

CASES = pytest.mark.parametrize('is_global', [False, True])
SIZES = pytest.mark.parametrize('size', [(6, 6), (7, 6), (6, 8), (7, 5), (2, 2)])
EACH_BACKEND = pytest.mark.parametrize('name', list(BACKENDS))
ON_CPU = pytest.mark.parametrize('name', [name for name in BACKENDS if name != 'triton'])
DEVICES = [('cpu', torch.float64, 1e-10)]
if torch.cuda.is_available():
    DEVICES.append(('cuda', torch.float32, 1e-4))


@pytest.fixture
def force(monkeypatch):
    return lambda name: monkeypatch.setattr(MODULE, 'forced_backend', name)


@pytest.fixture
def used(monkeypatch):
    """Record the names of the backends that are called, in order."""
    names = []

    def recording(name, attend):
        def call(inputs):
            names.append(name)
            return attend(inputs)

        return call

    for name, backend in list(BACKENDS.items()):
        recorded = dataclasses.replace(backend, attend=recording(name, backend.attend))
        monkeypatch.setitem(BACKENDS, name, recorded)
    return names


@EACH_BACKEND
@pytest.mark.parametrize('batch', [1, 3])
@SIZES
@CASES
@pytest.mark.parametrize(('device', 'dtype', 'tolerance'), DEVICES)
def test_each_backend_matches_the_definition(
    name, batch, size, is_global, device, dtype, tolerance, force
):
    exact = random_inputs(Windows(*size, 3), batch, is_global)
    inputs = [
        x.detach().to(device, dtype).requires_grad_() if isinstance(x, torch.Tensor) else x
        for x in exact
    ]
    if not BACKENDS[name].serves(MODULE.Inputs(*inputs)):
        pytest.skip(f'works {BACKENDS[name].when}')
    force(name)
    found, wanted = window_attention(*inputs), attention(*exact)
    cotangent = torch.randn(wanted.shape, dtype=torch.float64)
    grads = [
        torch.autograd.grad(out, tensors_of(of), cotangent.to(out), materialize_grads=True)
        for out, of in ((found, inputs), (wanted, exact))
    ]
    with torch.no_grad():
        without_gradients = window_attention(*inputs)
    pairs = [(found, wanted), (without_gradients, wanted), *zip(*grads, strict=True)]
    if not any(map(inputs[1].is_partial, inputs[1].regions)):
        # without partial windows, the padding may be empty
        pairs.append((window_attention(*inputs[:-1], inputs[-1][:0]), wanted))
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance)


def test_all_backends_are_tested():
    """Otherwise, the test above would skip them."""
    inputs = MODULE.Inputs(*random_inputs(Windows(7, 5, 3), 1, is_global=False))
    serving = {name for name, backend in BACKENDS.items() if backend.serves(inputs)}
    assert serving >= {'cpu', 'fused', 'plain'}


def on(device, inputs):
    return [x.detach().to(device) if isinstance(x, torch.Tensor) else x for x in inputs]


def trained_here(inputs):
    window_attention(*inputs)


def with_dropout(inputs):
    window_attention(*inputs, 0.1)


def on_another_device(inputs):
    assert window_attention(*on('meta', inputs)).device.type == 'meta'


def tensor_subclass(inputs):
    class Other(torch.Tensor):
        pass

    window_attention(inputs[0].detach().as_subclass(Other), *inputs[1:])


def traced(inputs):
    inputs = on('cpu', inputs)
    torch.jit.trace(lambda qkv: window_attention(qkv, *inputs[1:]), inputs[0], check_trace=False)


def vmapped(inputs):
    torch.func.vmap(lambda qkv: window_attention(qkv[None], *inputs[1:]))(inputs[0])


def differentiated_by_torch_func(inputs):
    torch.func.grad(lambda qkv: window_attention(qkv, *inputs[1:]).sum())(inputs[0])


def differentiated_forward(inputs):
    with forward_ad.dual_level():
        qkv = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        window_attention(qkv, *inputs[1:])


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('situation', 'name'),
    [
        (trained_here, 'cpu'),
        (with_dropout, 'fused'),
        (on_another_device, 'fused'),
        (tensor_subclass, 'fused'),
        (traced, 'fused'),
        (vmapped, 'plain'),
        (differentiated_by_torch_func, 'plain'),
        (differentiated_forward, 'plain'),
    ],
)
def test_backend_selection(situation, name, used):
    situation(random_inputs(Windows(7, 5, 3), 2, is_global=False))
    assert used == [name]


@ON_CPU
def test_backend_can_be_forced(name, force, used, nano):
    force(name)
    model = GCViT(nano, window_size=4)
    with torch.no_grad():
        model(torch.randn(1, 3, 50, 70))
    assert used == [name] * sum(nano['depths'])


def test_environment_variable_forces_a_backend():
    code = """if True:
        import importlib, os, sys
        import mmgcvit.ops
        module = sys.modules['mmgcvit.ops.attention']
        print(module.forced_backend)
        os.environ['MMGCVIT_ATTENTION'] = ''
        print(importlib.reload(module).forced_backend)
    """
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'MMGCVIT_ATTENTION': 'plain', 'PYTHONPATH': root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ['plain', 'None']


def test_error_for_unknown_backend(force):
    force('fastest')
    with pytest.raises(ValueError, match='MMGCVIT_ATTENTION=fastest is not allowed') as error:
        window_attention(*random_inputs(Windows(3, 3, 3), 1, is_global=False))
    assert all(name in str(error.value) for name in [*BACKENDS, 'unset'])


@pytest.mark.parametrize(
    ('name', 'situation'),
    [
        ('cpu', with_dropout),
        ('cpu', on_another_device),
        ('cpu', tensor_subclass),
        ('cpu', vmapped),
        ('cpu', differentiated_forward),
        ('fused', vmapped),
        ('fused', differentiated_forward),
    ],
)
def test_error_for_backend_that_does_not_support_the_inputs(name, situation, force):
    force(name)
    message = f'MMGCVIT_ATTENTION={name} does not support these inputs'
    with pytest.raises(ValueError, match=message) as error:
        situation(random_inputs(Windows(3, 3, 3), 2, is_global=False))
    assert BACKENDS[name].when in str(error.value)
    assert 'leave MMGCVIT_ATTENTION unset' in str(error.value)


def apply(probabilities, windows, value, padding):
    """Apply the weights of each region to the values (B, L, C) and the padding's value (1, C)."""
    out = []
    for (r, weights), part in zip(probabilities, windows.split(value), strict=True):
        h, n, keys = weights.shape[2:]
        part = by_head(part.unflatten(1, (r.num_windows, n)), h)
        last = by_head(padding, h).expand(*part.shape[:3], 1, -1)
        part = torch.cat([part, last], 3)[..., :keys, :]
        out.append((weights @ part).transpose(2, 3).flatten(3).flatten(1, 2))
    return torch.cat(out, 1)


def batched_by_vmap(windows, inputs):
    qkv, _, table, _, padding = inputs
    torch.func.vmap(lambda x: window_attention(qkv, windows, x, None, padding))(table[None])


def in_inference_mode(windows, inputs):
    with torch.inference_mode():
        window_attention(*inputs)


@ON_CPU
@pytest.mark.parametrize('first', [batched_by_vmap, in_inference_mode])
def test_windows_can_be_reused(name, first, force):
    windows = Windows(7, 5, 3)
    inputs = random_inputs(windows, 1, is_global=False)
    first(windows, inputs)
    force(name)
    found, wanted = window_attention(*inputs), attention(*inputs)
    assert_close(
        torch.autograd.grad(found.sin().sum(), tensors_of(inputs)),
        torch.autograd.grad(wanted.sin().sum(), tensors_of(inputs)),
    )


@pytest.mark.parametrize('batch', [1, 3])
@SIZES
@CASES
def test_probabilities(batch, size, is_global):
    windows = Windows(*size, 3)
    inputs = random_inputs(windows, batch, is_global)
    expected, weights = attention_and_weights(*inputs)
    value, padding = (x.chunk(2 if is_global else 3, -1)[-1] for x in (inputs[0], inputs[-1]))
    found = attention_probabilities(*inputs)
    assert [region for region, _ in found] == list(windows.regions)
    for r, probabilities in found:
        n = r.num_tokens
        keys = n + windows.is_partial(r)
        assert probabilities.shape == (batch, r.num_windows, HEADS, n, keys)
        sums = probabilities.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        # equal to the weights with explicit padding, summed over the padded keys
        is_real = torch.zeros(3, 3, dtype=torch.bool)
        is_real[: r.height, : r.width] = True
        of_region = weights[:, r.top // 3 :, r.left // 3 :][:, : r.rows, : r.columns]
        of_region = of_region.flatten(1, 2)[..., is_real.flatten(), :]
        torch.testing.assert_close(probabilities[..., :n], of_region[..., is_real.flatten()])
        if keys > n:
            of_padding = of_region[..., ~is_real.flatten()].sum(-1)
            torch.testing.assert_close(probabilities[..., n], of_padding)
    out = apply(found, windows, value, padding)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(out, window_attention(*inputs))


def test_probabilities_in_a_hook(nano):
    model = GCViT(nano, window_size=4).eval()
    seen = []

    def look(module, args, output):
        x, windows, _ = args
        found = module.attention_probabilities(*args)
        value, padding = (
            projected.chunk(2 if module.is_global else 3, -1)[-1]
            for projected in (module.qkv(x), module.qkv.bias[None])
        )
        out = module.proj(apply(found, windows, value, padding))
        torch.testing.assert_close(out, output, rtol=1e-4, atol=1e-5)
        seen.append(module.is_global)

    for stage in model.stages:
        for block in stage.blocks:
            block.attn.register_forward_hook(look)
    with torch.no_grad():
        model(torch.randn(2, 3, 50, 70))
    assert len(seen) == sum(nano['depths'])
    assert set(seen) == {False, True}


WINDOWS, POOLS = (4, 4, 3, 2), (2, 1, 1, 0)


@pytest.fixture
def model(nano):
    model = GCViT(nano, window_size=WINDOWS, query_downsamples=POOLS).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


IMAGES = torch.linspace(-1, 1, 2 * 3 * 37 * 50, dtype=torch.float64).sin().view(2, 3, 37, 50)


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def loss_of(outputs):
    return sum(out.sin().mean() for out in outputs)


def functional_loss(model):
    def loss(parameters, images):
        return loss_of(torch.func.functional_call(model, parameters, (images,)))

    return loss


def values(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_vmap_over_images(model):
    found = torch.func.vmap(model)(IMAGES[:, None])
    assert_close([out[:, 0] for out in found], model(IMAGES))


def test_vmap_over_parameters(model, nano):
    other = GCViT(nano, window_size=WINDOWS, query_downsamples=POOLS).double().eval()
    stacked, _ = torch.func.stack_module_state([model, other])
    found = torch.func.vmap(
        lambda parameters: torch.func.functional_call(model, parameters, (IMAGES,))
    )(stacked)
    assert_close([out[0] for out in found], model(IMAGES))
    assert_close([out[1] for out in found], other(IMAGES))


def test_gradients_of_torch_func(nano):
    network = GCViT(nano, window_size=4)
    images = torch.randn(1, 3, 40, 50)

    def loss(parameters):
        outputs = torch.func.functional_call(network, parameters, (images,))
        return sum(out.square().mean() for out in outputs)

    found = torch.func.grad(loss)({k: v.detach() for k, v in network.named_parameters()})
    loss(dict(network.named_parameters())).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_gradients_for_each_image(model):
    each = torch.func.vmap(torch.func.grad(functional_loss(model)), (None, 0))
    found = each(values(model), IMAGES[:, None])
    for i, image in enumerate(IMAGES[:, None]):
        wanted = torch.autograd.grad(loss_of(model(image)), list(model.parameters()))
        assert_close([grad[i] for grad in found.values()], wanted)


def test_forward_derivatives(model):
    """Compare Jacobian-vector products with the gradients of the backward pass."""
    tangent = torch.randn(IMAGES.shape, dtype=torch.float64)
    images = IMAGES.clone().requires_grad_()
    outputs = model(images)
    found_outputs, found = torch.func.jvp(model, (IMAGES,), (tangent,))
    assert_close(found_outputs, outputs)
    with forward_ad.dual_level():
        duals = model(forward_ad.make_dual(IMAGES, tangent))
        assert_close([forward_ad.unpack_dual(dual).tangent for dual in duals], found)
    for out, derivative in zip(outputs, found, strict=True):
        cotangent = torch.randn(out.shape, dtype=torch.float64)
        (grad,) = torch.autograd.grad(out, images, cotangent, retain_graph=True)
        torch.testing.assert_close((derivative * cotangent).sum(), (grad * tangent).sum())


def reference(model, images, heads):
    weights = to_nvidia(dict(model.named_parameters()))
    return gcvit(weights, images, heads, WINDOWS, POOLS)


def hessian_product(outputs, parameters):
    torch.manual_seed(1)
    grads = torch.autograd.grad(loss_of(outputs), parameters, create_graph=True)
    product = sum((grad * torch.randn(grad.shape)).sum() for grad in grads)
    return torch.autograd.grad(product, parameters)


def gradient_penalty(outputs, images, parameters):
    (grad,) = torch.autograd.grad(loss_of(outputs), images, create_graph=True)
    # scaled so that absolute tolerances are meaningful
    return torch.autograd.grad(1e3 * grad.square().sum(), parameters, materialize_grads=True)


# PyTorch's fused attention does not support second derivatives
@pytest.mark.parametrize('name', [None, 'cpu', 'plain'])
@pytest.mark.parametrize('tables_learn', [True, False])
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_second_derivatives(name, tables_learn, recompute, model, nano, force):
    for stage in model.stages:
        stage.recompute = recompute
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(tables_learn or 'table' not in parameter_name)
    learning = [p for p in model.parameters() if p.requires_grad]
    images = IMAGES.clone().requires_grad_()
    force(name)
    wanted = reference(model, images, nano['num_heads'])
    assert_close(hessian_product(model(images), learning), hessian_product(wanted, learning))
    wanted = reference(model, images, nano['num_heads'])
    assert_close(
        gradient_penalty(model(images), images, learning),
        gradient_penalty(wanted, images, learning),
    )


def test_second_derivatives_of_torch_func(model):
    parameters = values(model)
    tangents = {name: torch.randn(p.shape, dtype=p.dtype) for name, p in parameters.items()}
    gradient = torch.func.grad(functional_loss(model))
    _, found = torch.func.jvp(lambda p: gradient(p, IMAGES), (parameters,), (tangents,))
    learning = list(model.parameters())
    grads = torch.autograd.grad(loss_of(model(IMAGES)), learning, create_graph=True)
    product = sum((g * tangents[name]).sum() for name, g in zip(parameters, grads, strict=True))
    assert_close(list(found.values()), torch.autograd.grad(product, learning))


def test_a_frozen_bias_needs_a_gradient_where_the_tokens_learn():
    """For PyTorch, this rules out cuDNN, whose gradients can be NaN."""
    query, key, value = torch.randn(3, 2, 2, 4, 8).unbind()
    bias = torch.randn(2, 4, 4)
    assert by_region.bias_with_gradient(query, key, value, bias) is bias
    learning = torch.randn(2, 4, 4, requires_grad=True)
    assert by_region.bias_with_gradient(query.requires_grad_(), key, value, learning) is learning
    for x in (query, key, value):
        x.requires_grad_()
        found = by_region.bias_with_gradient(query, key, value, bias)
        assert torch.equal(found, bias) and found.requires_grad
        found.exp().sum().backward()
        assert x.grad is not None and not x.grad.any()
        x.requires_grad_(False)
        x.grad = None


@pytest.mark.parametrize('number', [torch.inf, torch.nan])
def test_a_number_that_is_not_finite_does_not_reach_the_bias(number):
    query, key, value = torch.randn(3, 2, 2, 4, 8).unbind()
    query[0, 0, 0, 0] = number
    bias = torch.randn(2, 4, 4)
    found = by_region.bias_with_gradient(query.requires_grad_(), key, value, bias)
    assert torch.equal(found, bias) and found.requires_grad


@SIZES
@CASES
def test_attention_with_padded_windows(size, is_global):
    inputs = random_inputs(Windows(*size, 3), 2, is_global)
    attend = partial(by_region.attend_by_region, attend=by_region.fused)
    found = by_region.attend_padded(MODULE.Inputs(*inputs), attend)
    wanted = attention(*inputs)
    assert torch.allclose(found, wanted, rtol=1e-10)
    cotangent = torch.randn_like(wanted)
    grads = [
        torch.autograd.grad(out, tensors_of(inputs), cotangent, materialize_grads=True)
        for out in (found, wanted)
    ]
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('learned', [True, False], ids=['learned', 'frozen'])
def test_padded_windows_in_graphs(learned):
    """GPUs compile and export what they compute eagerly."""
    windows = Windows(7, 5, 3)
    qkv, _, table, _, padding = random_inputs(windows, 2, is_global=False)
    table.requires_grad_(learned)

    def fused(query, key, value, bias, dropout):
        bias = by_region.bias_with_gradient(query, key, value, bias)
        return by_region.fused(query, key, value, bias, dropout)

    class Padded(torch.nn.Module):
        def forward(self, qkv):
            inputs = MODULE.Inputs(qkv, windows, table, None, padding)
            return by_region.attend_padded(
                inputs, partial(by_region.attend_by_region, attend=fused)
            )

    wanted = Padded()(qkv)
    compiled = torch.compile(Padded(), backend='aot_eager', fullgraph=True)(qkv)
    exported = torch.export.export(Padded(), (qkv.detach(),)).module()(qkv.detach())
    assert_close([compiled, exported], [wanted, wanted])
    cotangent = torch.randn_like(wanted)
    learning = [x for x in (qkv, table, padding) if x.requires_grad]
    assert_close(*(torch.autograd.grad(out, learning, cotangent) for out in (compiled, wanted)))
