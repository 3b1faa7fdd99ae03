"""Bicubic resizing by matrix products, as on GPUs."""

import pytest
import torch
import torch.nn.functional as F

from mmgcvit.ops import resize


@pytest.mark.parametrize('old', [(25, 40), (13, 9), (24, 24), (1, 50)])
def test_products_give_what_pytorch_interpolates(old):
    x = torch.randn(2, 3, *old, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = resize._resize_by_products(x, (24, 24))
    wanted = F.interpolate(x, (24, 24), mode='bicubic', align_corners=False)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    # the channels of queries for fused attention
    assert found.stride(1) == 1
    cotangent = torch.randn_like(wanted)
    grads = [torch.autograd.grad(out, x, cotangent)[0] for out in (found, wanted)]
    assert torch.allclose(*grads, rtol=1e-12, atol=1e-12)


def test_products_are_not_computed_in_half_precision():
    x = torch.randn(2, 3, 25, 40)
    with torch.autocast('cpu', torch.bfloat16):
        found = resize._resize_by_products(x.bfloat16(), (24, 24))
    wanted = F.interpolate(x.bfloat16().float(), (24, 24), mode='bicubic')
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=1e-5)
