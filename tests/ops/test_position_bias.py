"""Position biases, compared with an index table and with explicit padding."""

import importlib
import itertools

import pytest
import torch
from definition import position_bias

from mmgcvit.ops.by_region import Inputs, split_regions
from mmgcvit.ops.position_bias import (
    position_biases,
    position_biases_backward,
    reversed_position_biases,
)
from mmgcvit.ops.windows import Windows

HEADS = 2


def random_table(window, scale, dtype=torch.float64):
    """Return a table of values in [-scale, scale] that contains both limits."""
    table = scale * (2 * torch.rand((2 * window - 1) ** 2, HEADS, dtype=torch.float64) - 1)
    if len(table) > 1:
        extremes = torch.arange(HEADS) % 2 * 2.0 - 1
        table[0], table[-1] = scale * extremes, -scale * extremes
    return table.to(dtype).requires_grad_()


def expected_biases(table, windows):
    """Return (h, n, m) for each region, from the biases of all tokens including padded ones."""
    w, biases = windows.window_size, []
    every = position_bias(table, w)
    for region in windows.regions:
        is_real = torch.zeros(w, w, dtype=torch.bool)
        is_real[: region.height, : region.width] = True
        is_real = is_real.flatten()
        of_queries = every[:, is_real]
        bias, of_padding = of_queries[..., is_real], of_queries[..., ~is_real]
        if not is_real.all():
            bias = torch.cat([bias, of_padding.logsumexp(-1, keepdim=True)], -1)
        biases.append(bias)
    return biases


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('scale', [1, 300])
@pytest.mark.parametrize('window', [1, 2, 3, 4, 7])
def test_values_and_gradients(window, scale):
    table = random_table(window, scale)
    # layouts with one to four regions
    lengths = {1, window // 2 + 1, window, 2 * window - 1, 2 * window + 1}
    for height, width in itertools.product(lengths, repeat=2):
        check(table, Windows(height, width, window))


def check(table, windows):
    expected = expected_biases(table, windows)
    found = list(position_biases(table, windows, table.dtype))
    assert_close(found, expected)
    # without gradients, all biases may share one buffer
    with torch.no_grad():
        for a, b in zip(position_biases(table, windows, table.dtype), found, strict=True):
            assert_close(a, b)

    cotangents = [torch.randn(bias.shape, dtype=bias.dtype) for bias in found]
    (wanted,) = torch.autograd.grad(expected, table, cotangents)
    (grad,) = torch.autograd.grad(found, table, cotangents)
    assert_close(grad, wanted)

    # the manual backward pass, for keys in reverse order
    with torch.no_grad():
        biases = list(reversed_position_biases(table, windows))
        for (bias, of_padding), every in zip(biases, found, strict=True):
            n = bias.shape[-1]
            assert torch.equal(bias.flatten(1, 2).flip(-1), every[..., :n])
            if every.shape[-1] > n:
                assert_close(of_padding, every[..., n])
        reversed_cotangents = [
            torch.cat([grad[..., : r.num_tokens].flip(-1), grad[..., r.num_tokens :]], -1)
            for grad, r in zip(cotangents, windows.regions, strict=True)
        ]
        grad = position_biases_backward(reversed_cotangents, biases, table, windows)
    assert_close(grad, wanted)


@pytest.mark.parametrize('difference', [-600, 600])
def test_biases_of_padding_that_differ_by_hundreds(difference):
    # Windows at the bottom have one row. All padding is below it, so its offsets are in the first
    # rows of the table.
    windows, table = Windows(5, 4, 4), random_table(4, 1)
    with torch.no_grad():
        table.view(7, 7, HEADS)[:3] += difference
    check(table, windows)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_tables_in_lower_precision(dtype):
    """Biases of tokens are exact, and biases of padding are exact up to rounding."""
    windows, table = Windows(6, 7, 4), random_table(4, 30, dtype)
    expected = expected_biases(table.double(), windows)
    for a, b, region in zip(
        position_biases(table, windows, table.dtype), expected, windows.regions, strict=True
    ):
        assert a.dtype == dtype
        n = region.num_tokens
        assert torch.equal(a[..., :n].double(), b[..., :n])
        assert torch.equal(a[..., n:], b[..., n:].to(dtype))
    (grad,) = torch.autograd.grad(
        sum(b.sum() for b in position_biases(table, windows, table.dtype)), table
    )
    assert grad.dtype == dtype


@pytest.mark.parametrize('window', [4, 7, 8])
def test_rows_are_aligned_to_multiples_of_eight(window):
    windows, table = Windows(2 * window - 1, 2 * window - 2, window), random_table(window, 1)
    assert len(windows.regions) == 4
    for bias in position_biases(table, windows, table.dtype):
        assert bias.stride(-1) == 1
        assert bias.stride(-2) % 8 == 0
        assert bias.stride(0) % 8 == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_aligned_in_mixed_precision(dtype):
    windows, table = Windows(6, 7, 4), torch.randn(49, HEADS, requires_grad=True)
    qkv, padding = (torch.randn(*shape, 3 * HEADS * 2, dtype=dtype) for shape in ((1, 42), (1,)))
    for *_, bias in split_regions(Inputs(qkv, windows, table, None, padding)):
        assert bias.dtype == dtype
        assert bias.stride(-1) == 1 and bias.stride(-2) % 8 == 0


def test_padding_is_exact_in_mixed_precision_without_float64(monkeypatch):
    """Simulate a device without float64. Autocast must not turn its float32 into half precision."""
    windows, table = Windows(6, 7, 4), random_table(4, 20, torch.float32)
    exact = expected_biases(table.double(), windows)
    position_bias = importlib.import_module('mmgcvit.ops.position_bias')
    compute = position_bias._exponentials
    monkeypatch.setattr(
        position_bias, '_exponentials', lambda *args: [x.float() for x in compute(*args)]
    )
    with torch.autocast('cpu', torch.bfloat16):
        found = list(position_biases(table, windows, torch.float32))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
