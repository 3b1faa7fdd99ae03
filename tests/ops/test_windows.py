"""Partition of feature maps into windows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgcvit.ops import window_layout
from mmgcvit.ops.windows import PaddedWindows, Windows

sizes = st.integers(1, 20)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), height=sizes, width=sizes, window=st.integers(1, 8))
def test_tokens_of_each_window_are_contiguous(batch, height, width, window):
    windows = Windows(height, width, window)
    maps = torch.arange(batch * height * width * 2.0).view(batch, height, width, 2)
    tokens = windows.partition(maps)
    assert torch.equal(windows.merge(tokens), maps)
    expected = []
    for one in maps:
        for r in windows.regions:
            for top in range(r.top, r.top + r.rows * r.height, r.height):
                for left in range(r.left, r.left + r.columns * r.width, r.width):
                    part = one[top : top + r.height, left : left + r.width]
                    expected.append(part.reshape(-1, 2))
    assert torch.equal(tokens.flatten(0, 1), torch.cat(expected))
    parts = windows.split(tokens)
    assert [part.shape for part in parts] == [
        (batch, r.num_windows * r.num_tokens, 2) for r in windows.regions
    ]
    assert torch.equal(torch.cat(list(parts), 1), tokens)
    is_padded = any(map(windows.is_partial, windows.regions))
    assert is_padded == (height % window > 0 or width % window > 0)
    assert torch.equal(windows.padding(tokens), torch.zeros(int(is_padded), 2))
    assert windows.fill_padding(tokens, torch.zeros(1, 2)) is tokens


@pytest.mark.parametrize(
    ('height', 'width', 'sizes'),
    [
        (8, 12, [(4, 4)]),
        (8, 13, [(4, 4), (4, 1)]),
        (7, 12, [(4, 4), (3, 4)]),
        (6, 5, [(4, 4), (4, 1), (2, 4), (2, 1)]),
        (3, 5, [(3, 4), (3, 1)]),
        (1, 2, [(1, 2)]),
    ],
)
def test_at_most_four_sizes_of_windows(height, width, sizes):
    windows = window_layout(torch.empty(2, height, width, 3), 4)
    assert type(windows) is Windows
    assert [(region.height, region.width) for region in windows.regions] == sizes
    assert [windows.is_partial(region) for region in windows.regions] == [
        size != (4, 4) for size in sizes
    ]
    assert sum(r.num_windows * r.num_tokens for r in windows.regions) == height * width
    assert windows.num_padded_tokens == -(-height // 4) * -(-width // 4) * 16


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), height=sizes, width=sizes, window=st.integers(1, 8))
def test_padded_windows(batch, height, width, window):
    windows = PaddedWindows(height, width, window)
    maps = 1 + torch.arange(batch * height * width * 2.0).view(batch, height, width, 2)
    tokens = windows.partition(maps)
    assert torch.equal(windows.merge(tokens), maps)
    assert tokens.shape[1] == windows.num_padded_tokens
    (only,) = windows.split(tokens)
    assert torch.equal(only, tokens)
    (region,) = windows.regions
    assert not windows.is_partial(region)
    assert torch.equal(windows.padding(tokens), torch.zeros(1, 2))
    padding = torch.tensor([[-1.0, -2.0]])
    # padded tokens have arbitrary values before
    filled = windows.fill_padding(tokens + 1, padding)
    assert torch.equal(filled, torch.where(tokens > 0, tokens + 1, padding))
    padded = F.pad(maps, (0, 0, 0, -width % window, 0, -height % window))
    assert torch.equal(tokens, Windows(*padded.shape[1:3], window).partition(padded))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_traces_pad_to_support_other_sizes():
    def centred(x):
        windows = window_layout(x, 4)
        return windows.merge(windows.partition(x) - x.mean())

    traced = torch.jit.trace(centred, torch.randn(1, 8, 12, 2))
    x = torch.randn(2, 9, 5, 2)
    torch.testing.assert_close(traced(x), x - x.mean())


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), height=sizes, width=sizes, window=st.integers(1, 8))
def test_windows_are_padded_and_cropped(batch, height, width, window):
    windows = Windows(height, width, window)
    maps = torch.arange(batch * height * width * 2.0).view(batch, height, width, 2)
    padding = torch.tensor([[-1.0, -2.0]])
    padded = windows.pad(windows.partition(maps), padding)
    assert padded.shape[1] == windows.num_padded_tokens
    assert torch.equal(windows.crop(padded), windows.partition(maps))
    for r, part in zip(windows.regions, padded.split(in_regions(windows), 1), strict=True):
        for i, one in enumerate(part.unflatten(1, (-1, window, window)).unbind(1)):
            top = r.top + i // r.columns * r.height
            left = r.left + i % r.columns * r.width
            tokens = maps[:, top : top + r.height, left : left + r.width]
            assert torch.equal(one[:, : r.height, : r.width], tokens)
            assert (one[:, r.height :] == padding).all()
            assert (one[:, :, r.width :] == padding).all()


def in_regions(windows):
    return [region.num_windows * windows.window_size**2 for region in windows.regions]


def test_derivatives_of_padding_and_cropping():
    windows = Windows(4, 5, 3)
    tokens = torch.randn(2, 20, 2, dtype=torch.float64, requires_grad=True)
    padding = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    padded = torch.randn(2, 36, 2, dtype=torch.float64, requires_grad=True)
    for function, inputs in [(windows.pad, (tokens, padding)), (windows.crop, (padded,))]:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
