"""The forward pass on a GPU that is not there: devices, waits, strides, launches."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from fake_gpu import Launches, forward, needs_fake_gpu
from torch import nn

from mmgcvit import GCViT, ops
from mmgcvit.ops import by_region, resize
from mmgcvit.ops.windows import Windows

pytestmark = needs_fake_gpu
ATTENTION = importlib.import_module('mmgcvit.ops.attention')

# 32 channels per head, as in all published networks
ARCH = dict(
    embed_dims=32,
    depths=(2, 2, 1, 1),
    num_heads=(1, 2, 4, 8),
    mlp_ratio=2,
    layer_scale_init_value=0.5,
)
SIZE = 223, 361  # feature maps of 56×91, 28×46, 14×23 and 7×12 tokens


@pytest.fixture(scope='module')
def built():
    """Return networks. One of each kind is built."""
    models = {}

    def get(tables='learned', training=True, **arguments):
        name = tuple(arguments.items())
        if name not in models:
            models[name] = GCViT(ARCH, drop_path_rate=0.1, **arguments)
        model = models[name].train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(tables == 'learned' or not name.endswith('bias_table'))
        return model

    return get


@pytest.mark.parametrize('tables', ['learned', 'frozen'])
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_training_stays_on_the_gpu(recompute, tables, built):
    outputs, calls = forward(built(tables, recompute=recompute), 2, 3, *SIZE)
    assert [out.shape[2:] for out in outputs] == [(56, 91), (28, 46), (14, 23), (7, 12)]
    assert all(out.is_cuda and out.requires_grad for out in outputs)
    assert len(calls) == sum(ARCH['depths'])


@pytest.mark.parametrize('backend', ['fused', 'plain'])
@pytest.mark.parametrize('size', [SIZE, (96, 192)], ids=['partial', 'complete'])
def test_evaluation_stays_on_the_gpu(size, backend, built, monkeypatch):
    monkeypatch.setattr(ATTENTION, 'forced_backend', backend)
    with torch.no_grad():
        outputs, calls = forward(built(training=False, window_size=3), 1, 3, *size)
    assert all(out.is_cuda for out in outputs)
    assert len(calls) == (sum(ARCH['depths']) if backend == 'fused' else 0)


MISTAKES = {
    'item': lambda x: x + x.mean().item(),
    'bool': lambda x: x if (x > 0).any() else -x,
    'nonzero': lambda x: x + len(x.nonzero()),
    'masked_select': lambda x: x + x[x > 0].sum(),
    'unique': lambda x: x + len(x.unique()),
    'copy to the host': lambda x: x.cpu().to(x.device),
    'copy from the host': lambda x: x + torch.zeros(x.shape).to(x.device),
    'number from the host': lambda x: x + torch.tensor(0.5, device=x.device),
    'index on the host': lambda x: x[torch.arange(len(x))],
    'tensor on the host': lambda x: x + torch.zeros(x.shape),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_what_waits_for_the_gpu_is_found(mistake):
    class Waiting(nn.Module):
        def forward(self, x):
            return MISTAKES[mistake](x)

    with pytest.raises(RuntimeError, match=r'aten|device'):
        forward(Waiting(), 1, 3, 8, 8)


def test_a_wait_in_the_backbone_is_found(built):
    block = built(recompute='cheap').stages[1].blocks[1]
    handle = block.register_forward_hook(lambda block, inputs, out: out * out.max().item())
    try:
        with pytest.raises(RuntimeError, match='_local_scalar_dense'):
            forward(built(recompute='cheap'), 1, 3, *SIZE)
    finally:
        handle.remove()


def misaligned(calls):
    """Return what PyTorch would copy before its memory-efficient attention, or not support.

    Rows of the mask begin at multiples of 8 elements, tensors at multiples of 16 bytes.
    """
    return [
        (name, tuple(x.shape), x.stride(), x.storage_offset())
        for call in calls
        for name, x in zip(('query', 'key', 'value', 'mask'), call, strict=True)
        if x.stride(-1) != 1
        or any(stride % 8 for stride in x.stride()[:-1])
        or x.storage_offset() * x.itemsize % 16
        or (name != 'mask' and x.shape[-1] % 8)
    ]


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('tables', ['learned', 'frozen'])
@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
def test_inputs_of_attention_are_aligned(training, tables, batch, built):
    # 49 keys in the first stages, 25 in the others
    model = built(tables, training, window_size=(7, 7, 5, 5))
    with torch.set_grad_enabled(training):
        _, calls = forward(model, batch, 3, *SIZE, dtype=torch.bfloat16)
    assert {call[-1].shape[-1] for call in calls} == {49, 25}
    assert not misaligned(calls)
    # cuDNN does not support masks that require a gradient, and its gradients can be NaN
    assert {mask.requires_grad for *_, mask in calls} == {training}
    assert {mask.dtype for *_, mask in calls} == {torch.bfloat16}


class Regions(nn.Module):
    """Attention of all regions of a map, each in its own call."""

    def __init__(self, windows):
        super().__init__()
        self.windows = windows
        self.table = nn.Parameter(torch.empty(47**2, 2))

    def forward(self, x):
        tokens = x.new_empty(2, self.windows.height * self.windows.width, 192).requires_grad_()
        padding = x.new_empty(1, 192)
        inputs = by_region.Inputs(tokens, self.windows, self.table, None, padding)
        return by_region.attend_by_region(inputs, by_region.fused)


@pytest.mark.parametrize('learned', [True, False], ids=['learned', 'frozen'])
@pytest.mark.parametrize(
    ('size', 'keys'),
    [
        ((200, 320), {576, 193, 65}),
        ((100, 160), {576, 385, 97, 65}),
        ((50, 80), {576, 193, 49, 17}),
        ((25, 40), {576, 385, 25, 17}),
    ],
    ids=str,
)
def test_regions_of_an_image_of_800_by_1280_are_aligned(size, keys, learned):
    model = Regions(Windows(*size, 24)).requires_grad_(learned)
    _, calls = forward(model, 1, 3, 1, 1, dtype=torch.bfloat16)
    assert {call[-1].shape[-1] for call in calls} == keys
    assert not misaligned(calls)
    assert all(mask.requires_grad for *_, mask in calls)


def launches(model, *size):
    """Return the number of launches of a forward pass by operation, without filling caches."""
    watch = Launches()
    forward(model, *size, watch=watch)
    return watch.counts


def test_launches_of_partial_windows(built):
    """All windows of a map take one call. Padding and cropping them takes one operation each."""
    model = built(window_size=7)
    partial, complete = (launches(model, 1, 3, *size) for size in (SIZE, (224, 224)))
    for counts in (partial, complete):
        assert counts['_scaled_dot_product_efficient_attention'] == sum(ARCH['depths'])
    # SIZE gives complete windows in the first stage; addmm projects the padding
    for name in ('index_copy', 'index_select', 'addmm'):
        assert partial[name] - complete.get(name, 0) == sum(ARCH['depths'][1:])
    assert not {'constant_pad_nd', 'where'} & partial.keys()


@pytest.mark.parametrize('tables', ['learned', 'frozen'])
def test_mixed_precision_reaches_attention(tables, built, monkeypatch):
    """On a CPU, because autocast for CUDA turns itself off without a GPU."""
    monkeypatch.setattr(ATTENTION, 'forced_backend', 'fused')
    # as on a GPU, where it returns float32
    monkeypatch.setattr(ops, 'resize_bicubic', resize._resize_by_products)
    types = []
    attend = F.scaled_dot_product_attention

    def recording(*args, attn_mask, **kwargs):
        types.append({x.dtype for x in (*args, attn_mask)})
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', recording)
    with torch.autocast('cpu', torch.bfloat16):
        outputs = built(tables, window_size=7)(torch.randn(1, 3, 65, 97))
    assert types and all(found == {torch.bfloat16} for found in types)
    assert {out.dtype for out in outputs} == {torch.float32}
