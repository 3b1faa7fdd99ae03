"""Maps in the order of their windows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgcvit.models.windows import WindowLayout

sides = st.integers(1, 20)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), height=sides, width=sides, window=st.integers(1, 8))
def test_each_window_is_a_run_of_tokens(batch, height, width, window):
    layout = WindowLayout.of_maps(batch, height, width, window)
    maps = torch.arange(batch * height * width * 2.0).view(batch, height, width, 2)
    tokens = layout.pack(maps)
    assert torch.equal(layout.unpack(tokens), maps)
    expected = []
    for r in layout.regions:
        for one in maps:
            for top in range(r.top, r.top + r.rows * r.height, r.height):
                for left in range(r.left, r.left + r.columns * r.width, r.width):
                    part = one[top : top + r.height, left : left + r.width]
                    expected.append(part.reshape(-1, 2))
    assert torch.equal(tokens, torch.cat(expected))
    ids = torch.arange(batch)
    maps = ids[:, None, None, None].expand(batch, height, width, 1)
    assert torch.equal(layout.spread(ids), layout.pack(maps))


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
    layout = WindowLayout.of_maps(2, height, width, 4)
    assert [(region.height, region.width) for region in layout.regions] == sizes
    assert sum(r.num_windows * r.num_tokens for r in layout.regions) == height * width
    assert layout.num_padded_tokens == 2 * -(-height // 4) * -(-width // 4) * 16
