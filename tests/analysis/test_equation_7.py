"""Equation 7 of the paper, and its published complexities, against the products that are counted.

H, W: height and width of a feature map, C: channels, w: window size.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmgcvit import GCViT, ops
from mmgcvit.analysis import count_complexity
from mmgcvit.models import ARCHS
from mmgcvit.models.gcvit import WindowAttention


def equation_7(height, width, window, dim):
    """Return the multiply-accumulates of attention in one block: 2HW(2C² + hwC) with h = w."""
    return 2 * height * width * (2 * dim**2 + window**2 * dim)


def attention_macs(height, width, window, dim, is_global):
    """Count one attention module with its projections."""
    with torch.device('meta'):
        attention = WindowAttention(dim, 2, window, is_global)
        x, query = torch.empty(1, height * width, dim), torch.empty(1, window**2, dim)
    windows = ops.Windows(height, width, window)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        attention(x, windows, query)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(('height', 'width', 'window', 'dim'), [(56, 56, 7, 64), (24, 48, 24, 32)])
def test_equation_7_is_exact_for_local_attention(height, width, window, dim):
    expected = equation_7(height, width, window, dim)
    assert attention_macs(height, width, window, dim, is_global=False) == expected
    # a global block projects no query; the query generator computes it once per stage
    saved = height * width * dim**2
    assert attention_macs(height, width, window, dim, is_global=True) == expected - saved


def test_equation_7_of_partial_windows_is_that_of_the_padded_map():
    """This package computes less, because it does not compute padded tokens."""
    found = attention_macs(10, 9, 4, 32, is_global=False)
    assert equation_7(10, 9, 4, 32) < equation_7(12, 12, 4, 32)
    # linear layers of the real tokens, and keys and values of one padded token
    linear = 4 * 10 * 9 * 32**2 + 3 * 32**2
    # in each window, one more key replaces all padded ones
    regions = ops.Windows(10, 9, 4).regions
    pairs = sum(
        r.num_windows * r.num_tokens * (r.num_tokens + (r.num_tokens < 16)) for r in regions
    )
    # the rest computes the position bias of that key
    assert 0 < found - linear - 2 * pairs * 32 < 0.01 * found
    assert found < equation_7(12, 12, 4, 32)


class Classifier(nn.Module):
    """The backbone of a published classifier, which is called as mmpretrain calls it."""

    def __init__(self, arch: str, image_size: int = 224) -> None:
        super().__init__()
        with torch.device('meta'):
            self.backbone = GCViT(arch, image_size=image_size).eval()

    def forward(self, images: Tensor, mode: str) -> tuple[Tensor, ...]:
        return self.backbone(images)


def mbconv_macs(tokens, dim):
    """Depthwise convolution, squeeze-excitation, pointwise convolution."""
    return tokens * 9 * dim + 2 * dim * (dim // 4) + tokens * dim**2


def parts_of(arch, size):
    """Return the multiply-accumulates of each part of a backbone for square images, by hand."""
    model = Classifier(arch, size).backbone
    dims, first = ARCHS[arch].dims, ARCHS[arch].embed_dims
    parts = dict.fromkeys(('equation 7', 'global blocks', 'MLP', 'query generators'), 0)
    half, side = (size // 2) ** 2, size // 4
    # the stem has a convolution, and a downsampler without a change of channels
    parts['stem and downsamplers'] = (
        half * 27 * first + mbconv_macs(half, first) + side**2 * 9 * first**2
    )
    for stage, dim, downsamples in zip(model.stages, dims, (3, 2, 0, 0), strict=True):
        tokens = side**2
        for block in stage.blocks:
            parts['equation 7'] += equation_7(side, side, stage.window_size, dim)
            parts['global blocks'] -= tokens * dim**2 * block.attn.is_global
            parts['MLP'] += 2 * int(ARCHS[arch].mlp_ratio * dim) * dim * tokens
        for i in range(max(downsamples, 1)):
            parts['query generators'] += mbconv_macs((side // 2**i) ** 2, dim)
        if stage.downsample is not None:
            side //= 2
            merged = side**2 * 9 * dim * 2 * dim
            parts['stem and downsamplers'] += mbconv_macs(tokens, dim) + merged
    return parts


@pytest.mark.parametrize('arch', ['xxtiny', 'small'])
def test_all_parts_of_a_backbone_add_up(arch):
    assert sum(parts_of(arch, 224).values()) == count_complexity(Classifier(arch), (224, 224)).macs


def test_docs_give_the_parts_of_tiny():
    page = ' '.join((Path(__file__).parents[2] / 'docs/ablations.md').read_text().split())
    parts = parts_of('tiny', 224)
    text = (
        'it gives {} G for all blocks. Global attention takes {} G less than that. MLPs take {} G, '
        'query generators {} G, the stem and the downsamplers {} G. The sum is our count, {} G.'
    )
    values = [abs(value) for value in parts.values()] + [sum(parts.values())]
    assert text.format(*(f'{value / 1e9:.2f}' for value in values)) in page


# published FLOPs at 224×224 in G: the paper's (tables 1 and S.4), then NVIDIA's model card's
WITH_ATTENTION = {'xxtiny': 2.1, 'tiny': 4.7, 'small': 8.5, 'base': 14.8, 'large': 32.6}
WITHOUT_ATTENTION = {'tiny2': 5.5, 'small2': 10.7}


@pytest.mark.parametrize(
    'arch',
    [
        *('tiny', 'tiny2'),
        *(
            pytest.param(arch, marks=pytest.mark.nightly)
            for arch in ('xxtiny', 'small', 'small2', 'base', 'large')
        ),
    ],
)
def test_published_complexities_count_one_of_two_kinds_of_products(arch):
    found = count_complexity(Classifier(arch), (224, 224))
    assert found.macs == found.naive_macs  # nothing is padded
    counts = {'all': found.macs / 1e9, 'linear': found.naive_linear_macs / 1e9}
    published = (WITH_ATTENTION | WITHOUT_ATTENTION)[arch]
    nearest = min(counts, key=lambda kind: abs(counts[kind] - published))
    assert nearest == ('all' if arch in WITH_ATTENTION else 'linear')
    assert counts[nearest] == pytest.approx(published, rel=0.015)


def test_published_complexities_that_agree_with_no_count():
    """docs/ablations.md names them."""
    for arch, size, published, counted in (
        ('xtiny', 224, 2.6, (2.91, 2.68)),
        ('large', 384, 120.4, (103.9, 91.4)),
    ):
        found = count_complexity(Classifier(arch, size), (size, size))
        for macs, expected in zip((found.macs, found.naive_linear_macs), counted, strict=True):
            assert macs / 1e9 == pytest.approx(expected, rel=0.002)
            assert abs(macs / 1e9 / published - 1) > 0.03
