"""The backbone on a GPU, in every precision that trains on one. Skipped without a GPU.

tests/gpu.py describes how to rehearse these tests on a CPU.
"""

import contextlib
import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from gpu import DEVICE, needs_gpu, not_on_a_cpu
from torch import nn

from mmgcvit import GCViT, reference
from mmgcvit.analysis.peers import QUERY_DOWNSAMPLES, WINDOW_SIZE, PlainReference
from mmgcvit.models import ARCHS
from mmgcvit.weights.layouts import to_nvidia

pytestmark = [pytest.mark.gpu, needs_gpu]
ATTENTION = importlib.import_module('mmgcvit.ops.attention')

# 32 channels per head, as in all published networks
ARCH = dict(
    embed_dims=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    mlp_ratio=2,
    layer_scale_init_value=0.5,
)
# feature maps of 56×91, 28×46, 14×23 and 7×12 tokens: complete and partial windows
SIZE = 223, 361
# mean relative error of the tensors: outputs, and gradients
TOLERANCES = {
    # on a CPU, max pooling chooses another one of two values that differ by a rounding error
    torch.float32: (1e-5, 1e-5 if DEVICE == 'cuda' else 1e-4),
    torch.float16: (5e-3, 3e-2),
    torch.bfloat16: (4e-2, 1.2e-1),
}


@pytest.fixture(autouse=True)
def full_precision():
    """Turn TF32 off, which PyTorch uses in convolutions by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.compiler.reset()


def build(arch=ARCH, **arguments):
    """Build a network in which every part changes the outputs."""
    torch.manual_seed(1)
    model = GCViT(arch, drop_path_rate=0.0, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('bias_table'):
                parameter.normal_()
            elif parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def set_learning(model, learned):
    """Have the tables of position biases learn, or freeze them."""
    for name, parameter in model.named_parameters():
        if name.endswith('bias_table'):
            parameter.requires_grad_(learned)


def step(model, images, dtype):
    """Return the outputs of a training step. The gradients are in the parameters."""
    model.zero_grad()
    mixed = torch.autocast(images.device.type, dtype, enabled=dtype.itemsize == 2)
    with mixed:
        outputs = model(images)
    # weights that differ between the channels: the sum over the channels of a norm is constant
    weights = [
        torch.arange(x.numel(), device=x.device).view(x.shape).mul(0.7).cos() for x in outputs
    ]
    sum((x.float() * w).sum() for x, w in zip(outputs, weights, strict=True)).backward()
    return outputs


def errors(found, wanted):
    """Return the relative error of each tensor."""
    pairs = zip(found, wanted, strict=True)
    return torch.tensor([((a.double().cpu() - b).norm() / b.norm()).item() for a, b in pairs])


def learning(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.fixture(scope='module')
def exact():
    """Images, and outputs and gradients of the network in float64 on the CPU."""
    model = build().double()
    images = torch.randn(2, 3, *SIZE)
    outputs = step(model, images.double(), torch.float64)
    return images, [x.detach() for x in outputs], {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize('compiled', [False, True], ids=['eager', 'compiled'])
@pytest.mark.parametrize('tables', ['learned', 'frozen'])
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_outputs_and_gradients(exact, dtype, tables, compiled):
    images, outputs, grads = exact
    model = build().to(DEVICE)
    set_learning(model, tables == 'learned')
    network = torch.compile(model) if compiled else model
    found = step(network, images.to(DEVICE), dtype)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in named.values())
    of_outputs, of_grads = TOLERANCES[dtype]
    assert errors(found, outputs).mean() < of_outputs
    of_each = errors([p.grad for p in named.values()], [grads[n] for n in named])
    assert of_each.mean() < of_grads and of_each.max() < 10 * of_grads


class Plain(nn.Module):
    """The plain reference with the parameters of a network."""

    def __init__(self, model, arch):
        super().__init__()
        self.model, self.num_heads = model, ARCHS[arch].num_heads

    def forward(self, images):
        weights = to_nvidia(self.model.state_dict(keep_vars=True))
        return reference.gcvit(weights, images, self.num_heads, WINDOW_SIZE, QUERY_DOWNSAMPLES)


class Detectors:
    """Images of 800×1280 with the plain reference's outputs and gradients.

    Windows at the edges have 17 to 385 keys: all cases of the published detectors.
    """

    def __init__(self):
        self.arch = 'xxtiny'
        self.model = build(self.arch).to(DEVICE)
        self.images = torch.randn(1, 3, 800, 1280, device=DEVICE)
        self.plain = Plain(self.model, self.arch)
        self.exact = self.step(self.plain, torch.float32)

    def step(self, network, dtype):
        """Return the outputs and the gradients of a training step, by their names."""
        outputs = step(network, self.images, dtype)
        tensors = {f'output {i}': x.detach() for i, x in enumerate(outputs)}
        tensors |= {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {name: x.double().cpu() for name, x in tensors.items()}

    def errors(self, network, dtype):
        """Return the relative errors of a training step, those of outputs first."""
        found = self.step(network, dtype)
        return errors(found.values(), [self.exact[name] for name in found])


@pytest.fixture(scope='module')
def detectors():
    return Detectors()


# torch 2.11's compiler could not compile a network of this size
fails_in_the_compiler = pytest.mark.xfail(raises=RuntimeError, reason='CantSplit in the compiler')


@pytest.mark.parametrize(
    ('dtype', 'tables', 'how'),
    [
        (torch.float32, 'learned', 'eager'),
        (torch.bfloat16, 'learned', 'eager'),
        (torch.bfloat16, 'frozen', 'eager'),
        pytest.param(torch.bfloat16, 'learned', 'triton', marks=not_on_a_cpu),
        pytest.param(torch.bfloat16, 'learned', 'compiled', marks=fails_in_the_compiler),
    ],
    ids=str,
)
def test_images_of_detectors(detectors, dtype, tables, how, monkeypatch):
    """800×1280 as with plain operations; in bfloat16, with errors of the same size as theirs."""
    if how == 'triton':
        monkeypatch.setattr(ATTENTION, 'forced_backend', 'triton')
    model = detectors.model
    set_learning(model, tables == 'learned')
    found = detectors.errors(torch.compile(model) if how == 'compiled' else model, dtype)
    assert len(found) == 4 + len(learning(model))
    if dtype == torch.float32:
        assert found[:4].mean() < 1e-5 and found[4:].mean() < 1e-4
    else:
        plain = detectors.errors(detectors.plain, dtype)
        assert found[:4].mean() < 1.2 * plain[:4].mean()
        assert found[4:].mean() < 1.2 * plain[4:].mean()


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_evaluation(exact, dtype):
    images, outputs, _ = exact
    model = build().to(DEVICE).eval()
    with torch.no_grad(), torch.autocast(DEVICE, dtype, enabled=dtype.itemsize == 2):
        assert errors(model(images.to(DEVICE)), outputs).mean() < TOLERANCES[dtype][0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('learned', [True, False], ids=['learned', 'frozen'])
def test_scores_far_below_zero(dtype, learned):
    """A backward kernel of cuDNN can return NaN if a log-sum-exp of 576 keys is below -88.7."""
    model = build(out_indices=(0,)).to(DEVICE)
    for name, parameter in model.named_parameters():
        if name.endswith('bias_table'):
            parameter.data.sub_(200)
            parameter.requires_grad_(learned)
    images = torch.randn(2, 3, 192, 192, device=DEVICE)  # complete windows only
    exact = copy.deepcopy(model).double().cpu()
    wanted = step(exact, images.double().cpu(), torch.float64)
    found = step(model, images, dtype)
    of_outputs, of_grads = TOLERANCES[dtype]
    # numbers near -200 are rounded to integers in bfloat16
    assert errors(found, wanted).mean() < 2 * of_outputs
    of_each = errors(*([p.grad for p in learning(each)] for each in (model, exact)))
    assert of_each.mean() < 2 * of_grads and of_each.max() < 20 * of_grads


@not_on_a_cpu
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_the_host_never_waits(recompute):
    model = build(recompute=recompute).to(DEVICE)
    images = torch.randn(2, 3, *SIZE, device=DEVICE)
    step(model, images, torch.bfloat16)
    torch.cuda.set_sync_debug_mode('error')
    try:
        step(model, images, torch.bfloat16)
        with torch.no_grad():
            model.eval()(images)
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_deterministic_mode(dtype, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    model = build().to(DEVICE)
    images = torch.randn(2, 3, *SIZE, device=DEVICE)
    torch.use_deterministic_algorithms(True)
    try:
        grads = []
        for _ in range(2):
            step(model, images, dtype)
            grads.append([parameter.grad.clone() for parameter in learning(model)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def peak_memory(model, images):
    model.to(DEVICE)
    step(model, images, torch.bfloat16)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(model, images, torch.bfloat16)
    peak = torch.cuda.max_memory_allocated() - before
    model.cpu()
    return peak


@not_on_a_cpu
def test_memory_of_a_training_step():
    images = torch.randn(2, 3, 800, 1280, device=DEVICE)
    cheap, block, reference = (
        peak_memory(model, images)
        for model in (
            GCViT('tiny', drop_path_rate=0.0),
            GCViT('tiny', drop_path_rate=0.0, recompute='block'),
            PlainReference('tiny'),
        )
    )
    print(f'GB: {cheap / 1e9:.2f} cheap, {block / 1e9:.2f} block, {reference / 1e9:.2f} plain')
    assert block < 0.6 * cheap
    assert cheap < 0.5 * reference


@not_on_a_cpu
def test_the_bias_of_fused_attention_is_not_copied(monkeypatch):
    """PyTorch pads the bias in each call unless its strides are multiples of 8 elements."""
    strides = []
    attend = F.scaled_dot_product_attention

    def recording(*args, attn_mask, **kwargs):
        strides.append(attn_mask.stride())
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', recording)
    step(build().to(DEVICE), torch.randn(1, 3, *SIZE, device=DEVICE), torch.bfloat16)
    assert strides and all(
        stride[-1] == 1 and not any(n % 8 for n in stride[:-1]) for stride in strides
    )


def kernels(model, images, dtype):
    """Return the names of the GPU kernels of a training step."""
    step(model, images, dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(model, images, dtype)
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


@not_on_a_cpu
def test_attention_scores_are_never_in_memory():
    """All attention is computed by fused kernels, whether tables learn or not."""
    model = build().to(DEVICE)
    images = torch.randn(2, 3, *SIZE, device=DEVICE)
    for learned in (True, False):
        set_learning(model, learned)
        names = kernels(model, images, torch.bfloat16)
        assert not [name for name in names if 'softmax' in name.lower()]
        assert [name for name in names if 'fmha' in name or 'cudnn' in name.lower()]


@not_on_a_cpu
def test_memory_is_not_kept_between_steps():
    model = build().to(DEVICE)
    images = torch.randn(2, 3, *SIZE, device=DEVICE)
    used = []
    for _ in range(4):
        step(model, images, torch.bfloat16)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[1] == used[2] == used[3]
    model.eval()
    with torch.no_grad():
        for _ in range(4):
            model(images)
            used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[0]


@not_on_a_cpu
def test_wrong_device_is_an_error():
    with pytest.raises(RuntimeError, match=r'device|cuda'), contextlib.suppress(ValueError):
        build().to(DEVICE)(torch.randn(1, 3, 64, 64))
