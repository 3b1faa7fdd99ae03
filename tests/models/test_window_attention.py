"""Attention whose backward pass computes the scores again, against autograd's gradients."""

import pytest
import torch

from mmgcvit import GCViT
from mmgcvit.models import window_attention
from mmgcvit.models.position_bias import position_bias
from mmgcvit.models.window_attention import RecomputedAttention, attend
from mmgcvit.models.windows import WindowLayout

HEADS, HEAD_DIM = 2, 3


def inputs(layout, tokens, is_global, dtype=torch.float64):
    torch.manual_seed(0)
    w, kinds = layout.window_size, 2 if is_global else 3
    shapes = [
        (tokens, kinds, HEADS, HEAD_DIM),
        (layout.batch, w, w, HEADS, HEAD_DIM) if is_global else None,
        (2, HEADS, HEAD_DIM),
        ((2 * w - 1) ** 2, HEADS),
    ]
    return [s and torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def plain(layout, projected, global_query, padded, table):
    biases = [position_bias(table, layout.window_size, r.height, r.width) for r in layout.regions]
    return attend(layout, projected, global_query, padded, biases)


CASES = pytest.mark.parametrize('is_global', [False, True])
SIZES = pytest.mark.parametrize('sides', [(6, 6), (7, 6), (6, 8), (7, 5), (2, 2)])


@pytest.fixture(params=[1, 200, 2**20])
def few_scores(request, monkeypatch):
    """At a time: those of one head of one window, of some, all."""
    monkeypatch.setattr(window_attention, 'SCORES_IN_BACKWARD', request.param)


@SIZES
@CASES
def test_gradients_are_those_of_autograd(sides, is_global, few_scores):
    layout = WindowLayout.of_maps(2, *sides, 3)
    tensors = inputs(layout, 2 * sides[0] * sides[1], is_global)
    out, wanted = RecomputedAttention.apply(layout, *tensors), plain(layout, *tensors)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    learning = [x for x in tensors if x is not None]
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, learning, cotangent)
    # without padding the padded token has no part in it, and autograd no gradient for it
    expected = torch.autograd.grad(wanted, learning, cotangent, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@CASES
def test_gradcheck(is_global):
    layout = WindowLayout.of_maps(2, 3, 5, 2)
    tensors = inputs(layout, 2 * 3 * 5, is_global)

    def apply(*tensors):
        return RecomputedAttention.apply(layout, *tensors)

    assert torch.autograd.gradcheck(apply, tensors)


def test_second_derivatives_are_refused_and_not_wrong():
    layout = WindowLayout.of_maps(1, 2, 2, 2)
    tensors = inputs(layout, 4, is_global=False)
    out = RecomputedAttention.apply(layout, *tensors)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def kept_by(network, *inputs):
    """Numbers in each tensor that the forward pass keeps, parameters left out."""
    kept = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(*inputs)
    return outputs, list(kept.values())


def test_no_scores_are_kept(nano):
    images = torch.randn(1, 3, 128, 128)
    # 32² tokens of the first stage in 4 windows of 256
    scores = 4 * 256**2
    for rate, keeps_scores in ((0.0, False), (0.1, True)):
        network = GCViT(nano, window_size=16, attn_drop_rate=rate)
        outputs, kept = kept_by(network, images)
        # with dropout it is PyTorch that differentiates
        assert (max(kept) >= scores) == keeps_scores
        del outputs


def test_in_mixed_precision(nano):
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
        # of 8 bits each
        assert (found - wanted).norm() < 0.1 * wanted.norm() + 1e-4


@CASES
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_gradients_have_the_inputs_types(dtype, is_global):
    layout = WindowLayout.of_maps(1, 3, 3, 2)
    tensors = inputs(layout, 9, is_global, dtype)
    RecomputedAttention.apply(layout, *tensors).sum().backward()
    assert all(x.grad.dtype == dtype for x in tensors if x is not None)


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@CASES
def test_half_precision_is_as_exact_as_autograd(is_global):
    layout = WindowLayout.of_maps(1, 20, 15, 12)
    exact = inputs(layout, 300, is_global)
    cotangent = torch.randn(300, HEADS, HEAD_DIM, dtype=torch.float64)
    grads = []
    for function, dtype in (
        (plain, torch.float64),
        (plain, torch.bfloat16),
        (lambda *a: RecomputedAttention.apply(*a), torch.bfloat16),
    ):
        # large scores; the table learns in float32
        tensors = [
            x if x is None else (2 * x).to(dtype if x.dim() > 2 else torch.float32).detach()
            for x in exact
        ]
        tensors = [x if x is None else x.requires_grad_() for x in tensors]
        out = function(layout, *tensors)
        learning = [x for x in tensors if x is not None]
        grads.append(torch.autograd.grad(out, learning, cotangent.to(out.dtype)))
    for wanted, plainly, found in zip(*grads, strict=True):
        assert relative_error(found, wanted) < 1.5 * relative_error(plainly, wanted) + 1e-3


def test_an_empty_batch(nano):
    network = GCViT(nano, window_size=4)
    outputs = network(torch.randn(0, 3, 50, 70))
    sum(out.sum() for out in outputs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


@pytest.mark.skipif(torch.__version__ < '2.2', reason='has no fused attention with a bias')
def test_forward_pass_is_fused_on_a_cpu():
    layout = WindowLayout.of_maps(1, 4, 4, 4)
    tensors = inputs(layout, 16, is_global=False, dtype=torch.float32)
    with torch.profiler.profile() as profile:
        RecomputedAttention.apply(layout, *tensors)
    names = {event.key for event in profile.key_averages()}
    assert any('flash_attention_for_cpu' in name for name in names), names


def test_norms_and_activations_are_not_kept(nano):
    """Only what norms take, what attention takes and gives and the hidden channels, once."""
    network = GCViT(nano, window_size=4).train()
    block, tokens = network.stages[0].blocks[0], 4 * 4 * 9
    layout = WindowLayout.of_maps(1, 12, 12, 4)
    C = nano['embed_dims']
    x = torch.randn(tokens, C, requires_grad=True)
    out, kept = kept_by(block, x, layout, None)
    hidden = block.mlp.fc1.out_features
    assert out.shape == (tokens, C)
    big = sorted(size for size in kept if size >= tokens * C)
    # twice the input of a norm, attention's output, both branches for the gradient of their scale;
    # query, key and value; the hidden channels
    assert big == sorted([tokens * C] * 5 + [3 * tokens * C, tokens * hidden])


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
