"""Attention kernels in Triton, on a GPU, or in Triton's interpreter on a CPU."""

import dataclasses
import importlib
import importlib.util
import os
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from definition import tensors_of
from packaging.version import Version

from mmgcvit import GCViT
from mmgcvit.ops import window_attention
from mmgcvit.ops.by_region import Inputs, attend_by_region, plain
from mmgcvit.ops.windows import Windows

ROOT = Path(__file__).parents[2]
MODULE = importlib.import_module('mmgcvit.ops.attention')
IS_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if IS_INTERPRETED or not torch.cuda.is_available() else 'cuda'
# the interpreter does not multiply bfloat16 correctly
DTYPES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(DTYPES.items())[: 2 if DEVICE == 'cpu' else 3]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='Triton is not installed'
)
CASES = pytest.mark.parametrize('is_global', [False, True])
EACH_DTYPE = pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES)


@needs_triton
@pytest.mark.nightly
@pytest.mark.skipif(IS_INTERPRETED, reason='runs the other tests in the interpreter')
def test_in_the_interpreter():
    """Triton decides when it is imported whether it interprets, so this takes a new process."""
    triton, numpy = (Version(version(name)) for name in ('triton', 'numpy'))
    if triton < Version('3.7') and numpy >= Version('2.4'):
        pytest.skip('the interpreter of Triton before 3.7 needs numpy before 2.4')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture
def kernels(monkeypatch):
    """The module with the kernels. The interpreter gets small tiles, so that small windows have
    several, and the backend accepts CPUs."""
    module = importlib.import_module('mmgcvit.ops.triton_attention')
    if IS_INTERPRETED:
        backend = dataclasses.replace(MODULE.BACKENDS['triton'], serves=lambda inputs: True)
        monkeypatch.setitem(MODULE.BACKENDS, 'triton', backend)
        for size, (queries, keys) in {2: (16, 32), 4: (32, 16)}.items():
            config = {**module.CONFIGS[size], 'BLOCK_Q': queries, 'BLOCK_K': keys}
            monkeypatch.setitem(module.CONFIGS, size, config)
    return module


def runs_kernels(test):
    """Mark a test that needs a GPU or the interpreter."""
    reason = 'needs a GPU; test_in_the_interpreter runs it'
    skip = pytest.mark.skipif(not IS_INTERPRETED and DEVICE == 'cpu', reason=reason)
    return pytest.mark.gpu(skip(test))


def random_inputs(size, window_size, heads, head_dim, is_global, dtype, batch=2):
    """Return float64 inputs with values of ``dtype``, and a gradient of the output."""
    windows = Windows(*size, window_size)
    C, kinds = heads * head_dim, 2 if is_global else 3
    num_tokens = windows.height * windows.width

    def randn(*shape):
        return torch.randn(shape, device=DEVICE).to(dtype).double().requires_grad_()

    inputs = Inputs(
        randn(batch, num_tokens, kinds * C),
        windows,
        randn((2 * window_size - 1) ** 2, heads),
        randn(batch, window_size**2, C) if is_global else None,
        randn(1, kinds * C),
    )
    return inputs, randn(batch, num_tokens, C).detach()


def cast(inputs, dtype):
    """Return the inputs as training in mixed precision has them: the table is float32."""
    return Inputs(
        *(
            x.detach().to(torch.float32 if x is inputs.bias_table else dtype).requires_grad_()
            if isinstance(x, torch.Tensor)
            else x
            for x in inputs
        )
    )


def with_gradients(attend, inputs, grad_out):
    out = attend(inputs)
    grads = torch.autograd.grad(
        out, tensors_of(inputs), grad_out.to(out.dtype), materialize_grads=True
    )
    return [out, *grads]


def assert_near(found, wanted, tolerance):
    """Compare relative to the largest value of each tensor."""
    for a, b in zip(found, wanted, strict=True):
        largest = b.abs().max().item() or 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * largest)


@runs_kernels
@pytest.mark.parametrize(
    ('size', 'window_size', 'heads', 'head_dim'),
    [
        ((10, 9), 7, 2, 16),  # padding at the right, at the bottom and in the corner
        ((8, 16), 8, 1, 64),  # no padding, and tiles that divide a window
        ((2, 3), 7, 2, 32),  # a single window
    ],
)
@CASES
@EACH_DTYPE
def test_matches_plain_operations(
    kernels, size, window_size, heads, head_dim, is_global, dtype, tolerance
):
    exact, grad_out = random_inputs(size, window_size, heads, head_dim, is_global, dtype)
    wanted = with_gradients(lambda inputs: attend_by_region(inputs, plain), exact, grad_out)
    inputs = cast(exact, dtype)
    found = with_gradients(kernels.attend, inputs, grad_out)
    assert [x.dtype for x in found] == [dtype, *(x.dtype for x in tensors_of(inputs))]
    assert found[2].stride() == inputs.bias_table.stride()
    assert_near(found, wanted, tolerance)
    with torch.no_grad():
        assert torch.equal(kernels.attend(inputs), found[0])


@runs_kernels
@pytest.mark.parametrize(
    ('size', 'is_global'),
    [
        ((32, 32), False),  # 193, 193 and 65 keys at the edges
        ((28, 40), True),  # 385, 97 and 65
        ((26, 32), True),  # 193, 49 and 17
        ((25, 40), False),  # 385, 25 and 17
    ],
)
@EACH_DTYPE
def test_windows_of_detectors(kernels, size, is_global, dtype, tolerance, monkeypatch):
    """The edges of the four stages at 800 × 1280, with the tiles of the backend."""
    for bytes_per_element, config in kernels.CONFIGS.items():
        tiles = dict.fromkeys(('BLOCK_Q', 'BLOCK_K'), 128 // bytes_per_element)
        monkeypatch.setitem(kernels.CONFIGS, bytes_per_element, {**config, **tiles})
    exact, grad_out = random_inputs(size, 24, 1, 32, is_global, dtype, batch=1)
    wanted = with_gradients(lambda inputs: attend_by_region(inputs, plain), exact, grad_out)
    assert_near(with_gradients(kernels.attend, cast(exact, dtype), grad_out), wanted, tolerance)


@runs_kernels
def test_inputs_that_are_not_contiguous(kernels):
    exact, _ = random_inputs((7, 14), 7, 2, 16, True, torch.float32)
    # strides of 0
    grad_out = torch.ones(1, 1, 32, device=DEVICE).expand(2, 98, -1)
    wanted = with_gradients(lambda inputs: attend_by_region(inputs, plain), exact, grad_out)
    inputs = cast(exact, torch.float32)
    transposed = (
        x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
        if isinstance(x, torch.Tensor)
        else x
        for x in inputs
    )
    assert_near(with_gradients(kernels.attend, Inputs(*transposed), grad_out), wanted, 2e-6)


@runs_kernels
@pytest.mark.parametrize('windows_per_part', [1, 2, 100])
def test_windows_in_parts(kernels, windows_per_part, monkeypatch):
    """With 6 windows, the bias kernel splits them into 6, 3 or 1 parts."""
    monkeypatch.setattr(kernels, 'WINDOWS_PER_PART', windows_per_part)
    exact, grad_out = random_inputs((7, 21), 7, 2, 32, False, torch.float32)
    wanted = with_gradients(lambda inputs: attend_by_region(inputs, plain), exact, grad_out)
    assert_near(with_gradients(kernels.attend, cast(exact, torch.float32), grad_out), wanted, 2e-6)


@runs_kernels
@CASES
@EACH_DTYPE
def test_results_are_deterministic(kernels, is_global, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(kernels, 'WINDOWS_PER_PART', 1)
    exact, grad_out = random_inputs((7, 10), 7, 2, 32, is_global, dtype)
    first, second = (with_gradients(kernels.attend, cast(exact, dtype), grad_out) for _ in range(2))
    assert all(map(torch.equal, first, second))


@runs_kernels
@pytest.mark.parametrize('shift', [-5000, 5000])
def test_exponentials_out_of_range(kernels, shift):
    """Scores are in the thousands, and those of a query differ by hundreds."""
    exact, grad_out = random_inputs((9, 10), 7, 2, 32, False, torch.float32)
    table = (exact.bias_table * 100 + shift).detach().requires_grad_()
    exact = exact._replace(bias_table=table)
    wanted = with_gradients(lambda inputs: attend_by_region(inputs, plain), exact, grad_out)
    found = with_gradients(kernels.attend, cast(exact, torch.float32), grad_out)
    # scores of this size have an error of 5e-4 in float32
    assert_near(found, wanted, 2e-3)


@runs_kernels
@pytest.mark.parametrize('needed', range(5))
def test_gradients_of_single_inputs(kernels, needed, monkeypatch):
    """What does not learn gets no gradient, and what does gets the same one."""
    exact, grad_out = random_inputs((9, 10), 7, 2, 32, True, torch.float32)
    wanted = with_gradients(kernels.attend, cast(exact, torch.float32), grad_out)[1:]
    inputs = cast(exact, torch.float32)
    for x in tensors_of(inputs):
        x.requires_grad_(False)
    if needed == 4:
        assert not kernels.attend(inputs).requires_grad
        return
    tensors_of(inputs)[needed].requires_grad_()
    if inputs.bias_table is not tensors_of(inputs)[needed]:
        # a frozen table needs no gradient
        monkeypatch.setattr(kernels, '_bias_kernel', None)
        monkeypatch.setattr(kernels, '_table_kernel', None)
    kernels.attend(inputs).backward(grad_out.float())
    for i, x in enumerate(tensors_of(inputs)):
        assert x.grad is None if i != needed else torch.equal(x.grad, wanted[i])


@runs_kernels
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
@EACH_DTYPE
def test_networks_train_as_with_plain_operations(
    kernels, recompute, dtype, tolerance, nano, monkeypatch
):
    arch = {**nano, 'embed_dims': 16, 'num_heads': (1, 2, 4, 8)}
    model = GCViT(arch, window_size=4, recompute=recompute).to(DEVICE)
    images = torch.randn(1, 3, 36, 44, device=DEVICE)
    if dtype == torch.float16:
        pytest.skip('float16 would need a scaled loss')
    results = []
    for name in ('plain', 'triton'):
        monkeypatch.setattr(MODULE, 'forced_backend', name)
        model.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            outs = model(images)
        sum(out.float().sin().sum() for out in outs).backward()
        results.append([x.double() for x in (*outs, *(p.grad for p in model.parameters()))])
    wanted, found = results
    assert_near(found, wanted, 10 * tolerance if DEVICE == 'cuda' else 2e-5)


def test_error_on_a_cpu(monkeypatch):
    monkeypatch.setattr(MODULE, 'forced_backend', 'triton')
    inputs, _ = random_inputs((7, 7), 7, 1, 32, False, torch.float32)
    inputs = [x.cpu() if isinstance(x, torch.Tensor) else x for x in cast(inputs, torch.float32)]
    with pytest.raises(ValueError, match=r'MMGCVIT_ATTENTION=triton does not support .* on GPUs'):
        window_attention(*inputs)


@pytest.mark.parametrize('found', [None, types.SimpleNamespace(__version__='2.1.0', jit=None)])
def test_error_without_triton(monkeypatch, found):
    monkeypatch.setitem(sys.modules, 'triton', found)
    monkeypatch.setitem(sys.modules, 'triton.language', types.SimpleNamespace())
    monkeypatch.delitem(sys.modules, 'mmgcvit.ops.triton_attention', raising=False)
    inputs, _ = random_inputs((7, 7), 7, 1, 32, False, torch.float32)
    with pytest.raises(
        ValueError, match=r'MMGCVIT_ATTENTION=triton needs Triton 3.0.*update torch'
    ):
        MODULE.BACKENDS['triton'].attend(inputs)


def test_the_backend_is_opt_in():
    """The first backend that supports the inputs is used. Its speed has to be measured first."""
    names = list(MODULE.BACKENDS)
    assert names.index('triton') > names.index('plain') and MODULE.BACKENDS['plain'].serves(None)
    text = ' '.join((ROOT / 'docs' / 'performance.md').read_text().replace('*', '').split())
    assert 'This version was not measured on a GPU, so it is only used if requested' in text


def test_kernels_are_imported_on_request():
    code = 'import sys, mmgcvit; print("mmgcvit.ops.triton_attention" in sys.modules)'
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == 'False'
