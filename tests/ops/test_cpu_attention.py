"""Attention with a backward pass that recomputes the scores, compared with autograd."""

from functools import partial

import pytest
import torch
from definition import HEAD_DIM, HEADS, attention, random_inputs, tensors_of
from kept import kept_by

from mmgcvit import GCViT
from mmgcvit.ops import cpu_attention
from mmgcvit.ops.by_region import Inputs, attend_by_region, plain
from mmgcvit.ops.cpu_attention import CPUAttention
from mmgcvit.ops.windows import Windows

CASES = pytest.mark.parametrize('is_global', [False, True])
SIZES = pytest.mark.parametrize('size', [(6, 6), (7, 6), (6, 8), (7, 5), (2, 2)])


@pytest.fixture(params=[1, 200, 2**20])
def few_scores(request, monkeypatch):
    """Process one head of one window at a time, several, or all of them."""
    monkeypatch.setattr(cpu_attention, 'SCORES_IN_BACKWARD', request.param)


@SIZES
@CASES
def test_gradients_match_autograd(size, is_global, few_scores):
    inputs = random_inputs(Windows(*size, 3), 2, is_global)
    out, wanted = CPUAttention.apply(*inputs), attention(*inputs)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, tensors_of(inputs), cotangent)
    expected = torch.autograd.grad(wanted, tensors_of(inputs), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_tables_with_a_range_of_hundreds(few_scores):
    inputs = random_inputs(Windows(7, 5, 3), 2, is_global=False)
    inputs[2] = (300 * inputs[2].detach().tanh()).requires_grad_()
    out, wanted = CPUAttention.apply(*inputs), attention(*inputs)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(out.shape, dtype=out.dtype)
    found = torch.autograd.grad(out, tensors_of(inputs), cotangent)
    expected = torch.autograd.grad(wanted, tensors_of(inputs), cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@CASES
def test_gradcheck(is_global):
    inputs = random_inputs(Windows(3, 5, 2), 2, is_global)
    assert torch.autograd.gradcheck(CPUAttention.apply, inputs)


@CASES
def test_gradgradcheck(is_global):
    inputs = random_inputs(Windows(2, 3, 2), 1, is_global)
    assert torch.autograd.gradgradcheck(CPUAttention.apply, inputs)


def first_and_second_derivatives(function, inputs):
    """Return gradients, and the gradients of their dot product with random vectors."""
    learning = [x for x in tensors_of(inputs) if x.requires_grad]
    torch.manual_seed(1)
    out = function(*inputs).sin()
    grads = derivatives(out, learning, create_graph=True)
    product = sum((grad * torch.randn(grad.shape)).sum() for grad in grads)
    return [*grads, *derivatives(product, learning)]


def derivatives(out, inputs, **kwargs):
    cotangent = torch.randn(out.shape, dtype=out.dtype)
    # materialize_grads, because padding is unused if no window needs it
    return torch.autograd.grad(out, inputs, cotangent, materialize_grads=True, **kwargs)


@SIZES
@CASES
@pytest.mark.parametrize('learns', ['all', 'all but the table', 'the table'])
def test_second_derivatives_match_autograd(size, is_global, learns):
    inputs = random_inputs(Windows(*size, 3), 2, is_global)
    for i, x in enumerate(inputs):
        if isinstance(x, torch.Tensor):
            x.requires_grad_({'all': True, 'the table': i == 2}.get(learns, i != 2))
    found = first_and_second_derivatives(CPUAttention.apply, inputs)
    wanted = first_and_second_derivatives(attention, inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_derivatives_of_inputs_that_depend_on_each_other():
    """For example, tokens that are computed from the padding."""
    windows = Windows(4, 5, 3)
    tokens, _, table, _, padding = random_inputs(windows, 2, is_global=False)

    def gradients(function, create_graph):
        out = function(tokens + padding, windows, table, None, padding)
        learning = [tokens, table, padding]
        return torch.autograd.grad(out.square().sum(), learning, create_graph=create_graph)

    wanted = gradients(attention, create_graph=False)
    for create_graph in (False, True):
        found = gradients(CPUAttention.apply, create_graph)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_backward_pass_can_be_repeated():
    inputs = random_inputs(Windows(4, 5, 3), 2, is_global=True)
    out = CPUAttention.apply(*inputs).sum()
    first = torch.autograd.grad(out, tensors_of(inputs), retain_graph=True)
    second = torch.autograd.grad(out, tensors_of(inputs))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_scores_are_not_saved(nano):
    images = torch.randn(1, 3, 128, 128)
    # the first stage has 32² tokens in 4 windows of 256 tokens
    scores = 4 * 256**2
    for rate, keeps_scores in ((0.0, False), (0.1, True)):
        network = GCViT(nano, window_size=16, attn_drop_rate=rate)
        outputs, kept = kept_by(network, partial(network, images))
        # with dropout, autograd saves the scores
        assert (max(kept) >= scores) == keeps_scores
        del outputs


def test_mixed_precision(nano):
    torch.manual_seed(0)
    network = GCViT(nano, window_size=4).train()
    images = torch.randn(2, 3, 50, 70)
    grads = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            outputs = network(images)
        sum(out.float().square().mean() for out in outputs).backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for wanted, found in zip(*grads, strict=True):
        assert found.dtype == torch.float32
        # bfloat16 has 8 bits of precision
        assert (found - wanted).norm() < 0.1 * wanted.norm() + 1e-4


@CASES
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_gradients_have_the_dtypes_of_the_inputs(dtype, is_global):
    inputs = random_inputs(Windows(3, 3, 2), 1, is_global, dtype)
    CPUAttention.apply(*inputs).sum().backward()
    assert all(x.grad.dtype == dtype for x in tensors_of(inputs))
    grads = derivatives(CPUAttention.apply(*inputs), tensors_of(inputs), create_graph=True)
    assert all(grad.dtype == dtype for grad in grads)
    second = derivatives(sum(grad.square().sum() for grad in grads), tensors_of(inputs))
    assert all(grad.dtype == dtype for grad in second)


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@CASES
def test_half_precision_is_as_accurate_as_autograd(is_global):
    windows = Windows(20, 15, 12)
    exact = random_inputs(windows, 1, is_global)
    cotangent = torch.randn(1, 300, HEADS * HEAD_DIM, dtype=torch.float64)
    grads = []
    for function, dtype in (
        (attention, torch.float64),
        (lambda *inputs: attend_by_region(Inputs(*inputs), plain), torch.bfloat16),
        (CPUAttention.apply, torch.bfloat16),
    ):
        # large scores; the table stays in float32
        inputs = [
            (2 * x).to(torch.float32 if i == 2 else dtype).detach().requires_grad_()
            if isinstance(x, torch.Tensor)
            else x
            for i, x in enumerate(exact)
        ]
        out = function(*inputs)
        grads.append(torch.autograd.grad(out, tensors_of(inputs), cotangent.to(out.dtype)))
    for wanted, plainly, found in zip(*grads, strict=True):
        assert relative_error(found, wanted) < 1.5 * relative_error(plainly, wanted) + 1e-3


def test_empty_batch(nano):
    network = GCViT(nano, window_size=4)
    outputs = network(torch.randn(0, 3, 50, 70))
    sum(out.sum() for out in outputs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


@pytest.mark.skipif(torch.__version__ < '2.2', reason='has no fused attention with a bias')
def test_forward_pass_is_fused_on_a_cpu():
    inputs = random_inputs(Windows(4, 4, 4), 1, is_global=False, dtype=torch.float32)
    with torch.profiler.profile() as profile:
        CPUAttention.apply(*inputs)
    names = {event.key for event in profile.key_averages()}
    assert any('flash_attention_for_cpu' in name for name in names), names
