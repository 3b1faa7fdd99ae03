"""Recorded queries and attention are those of the computation, at their places in the image."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmgcvit import GCViT, reference
from mmgcvit.errors import UserError
from mmgcvit.visualization.attention import choose_blocks, find_backbone, record
from mmgcvit.visualization.placement import Placement
from mmgcvit.weights.layouts import to_nvidia

ARCH = dict(
    embed_dims=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 2, 4), mlp_ratio=2,
    layer_scale_init_value=0.5,
)  # fmt: skip
WINDOWS, POOLS = (5, 4, 3, 2), (2, 1, 1, 0)
# stage 0 has 13×18 tokens, stage 3 has 2×3: windows that are cut on the right, below, or not at all
HEIGHT, WIDTH = 50, 70


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    model = GCViT(ARCH, window_size=WINDOWS, query_downsamples=POOLS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def plain(network, images):
    """Attention weights of the first image in every block of the plain network, (nW, h, w², w²)."""
    weights, softmax = [], Tensor.softmax

    def spy(scores, dim):
        weights.append(softmax(scores, dim))
        return weights[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Tensor, 'softmax', spy)
        reference.gcvit(to_nvidia(network.state_dict()), images, ARCH['num_heads'], WINDOWS, POOLS)
    names = [(i, j) for i, depth in enumerate(ARCH['depths']) for j in range(depth)]
    return {name: each[: len(each) // 2] for name, each in zip(names, weights, strict=True)}


def recorded(network, images, **settings):
    blocks = [(i, j) for i, depth in enumerate(ARCH['depths']) for j in range(depth)]
    with torch.no_grad(), record(network, blocks, **settings) as recording:
        network(images)
    return recording


def size_of(stage):
    return math.ceil(HEIGHT / 4 / 2**stage), math.ceil(WIDTH / 4 / 2**stage)


def windows_of(stage):
    """Yield the number and the rows and columns in the feature map of each window."""
    (height, width), w = size_of(stage), WINDOWS[stage]
    number = 0
    for top in range(0, height, w):
        for left in range(0, width, w):
            yield number, slice(top, min(top + w, height)), slice(left, min(left + w, width))
            number += 1


def parts(weights, rows, columns, w):
    """Split a row of w² weights into those of tokens in the feature map and the padding's sum."""
    grid = weights.unflatten(-1, (w, w))
    real = grid[..., : rows.stop - rows.start, : columns.stop - columns.start]
    return real, weights.sum(-1) - real.sum((-2, -1))


def test_mean_attention_is_that_of_the_plain_network(network, images, plain):
    maps = recorded(network, images).attention
    assert [(each.stage, each.block) for each in maps] == list(plain)
    padded = 0
    for each in maps:
        assert each.weights.shape[1:] == each.padding.shape[1:] == size_of(each.stage)
        w = WINDOWS[each.stage]
        for number, rows, columns in windows_of(each.stage):
            wanted = plain[each.stage, each.block][number].unflatten(1, (w, w))
            # padded tokens have queries in the plain network, whose results it drops
            wanted = wanted[:, : rows.stop - rows.start, : columns.stop - columns.start]
            real, padding = parts(wanted.mean((1, 2)), rows, columns, w)
            found = each.weights[:, rows, columns]
            torch.testing.assert_close(found, real, rtol=1e-4, atol=1e-6)
            of_window = each.padding[:, rows, columns].flatten(1)
            torch.testing.assert_close(of_window[:, 0], padding, rtol=1e-4, atol=1e-6)
            assert (of_window == of_window[:, :1]).all()
            total = found.sum((1, 2)) + of_window[:, 0]
            torch.testing.assert_close(total, torch.ones_like(total))
            padded += float(padding.mean()) > 0.01
    assert padded > 5


@pytest.mark.parametrize(('x', 'y'), [(0, 0), (41, 23), (69, 3), (5, 49), (69, 49)])
def test_attention_of_a_token_is_that_of_the_plain_network(network, images, plain, x, y):
    for each in recorded(network, images, token=(y + 0.5, x + 0.5)).attention:
        w, stride = WINDOWS[each.stage], 4 * 2**each.stage
        row, column = each.token
        assert (row, column) == (y // stride, x // stride)
        (window,) = [
            (number, rows, columns)
            for number, rows, columns in windows_of(each.stage)
            if rows.start <= row < rows.stop and columns.start <= column < columns.stop
        ]
        number, rows, columns = window
        query = (row - rows.start) * w + column - columns.start
        wanted = plain[each.stage, each.block][number][:, query]
        real, padding = parts(wanted, rows, columns, w)
        torch.testing.assert_close(each.weights[:, rows, columns], real, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each.padding, padding, rtol=1e-4, atol=1e-6)
        total = each.weights.sum((1, 2)) + each.padding
        torch.testing.assert_close(total, torch.ones_like(total))
        top, left, height, width = each.window
        assert (slice(top, top + height), slice(left, left + width)) == (rows, columns)


def test_weights_times_values_are_the_output_of_the_module(network, images):
    """Every token of a stage with partial windows, rebuilt from its recorded weights."""
    stage, block = 2, 0
    attention = network.stages[stage].blocks[block].attn
    calls = []
    handle = attention.register_forward_hook(lambda _, args, output: calls.append((args, output)))
    with torch.no_grad():
        network(images[:1])
        handle.remove()
        (x, windows, _), output = calls[0]
        output = windows.merge(output)[0]
        heads = ARCH['num_heads'][stage]
        value = windows.merge(attention.qkv(x))[0].chunk(3, -1)[2].unflatten(-1, (heads, -1))
        of_padding = attention.qkv.bias.chunk(3)[2].unflatten(0, (heads, -1))
        height, width = size_of(stage)
        for row in range(height):
            for column in range(width):
                pixel = 16 * row + 1.0, 16 * column + 1.0
                (each,) = [
                    m
                    for m in recorded(network, images, token=pixel).attention
                    if (m.stage, m.block) == (stage, block)
                ]
                found = torch.einsum('hyx,yxhd->hd', each.weights, value)
                found = attention.proj((found + each.padding[:, None] * of_padding).flatten())
                torch.testing.assert_close(found, output[row, column], rtol=1e-4, atol=1e-5)


def test_queries_are_the_output_of_the_generators(network, images):
    outputs = []
    handles = [
        stage.query_generator.register_forward_hook(lambda _, args, out: outputs.append(out))
        for stage in network.stages
    ]
    recording = recorded(network, images)
    for handle in handles:
        handle.remove()
    assert list(recording.queries) == [0, 1, 2, 3]
    for stage, query in recording.queries.items():
        w = WINDOWS[stage]
        assert query.shape == (w, w, 8 * 2**stage)
        assert torch.equal(query.flatten(0, 1), outputs[stage][0])


def test_recording_changes_nothing_and_leaves_no_hooks(network, images):
    with torch.no_grad():
        wanted = network(images)
    recording = recorded(network, images)
    assert all(torch.equal(a, b) for a, b in zip(recording.outputs, wanted, strict=True))
    assert recording.input_size == (HEIGHT, WIDTH)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_first_of_several_passes_is_recorded(network, images):
    with torch.no_grad(), record(network, [(0, 0), (3, 1)]) as recording:
        first = network(images)
        network(images.flip(0))
    assert torch.equal(recording.outputs[0], first[0])
    wanted = recorded(network, images)
    assert len(recording.attention) == 2
    assert torch.equal(recording.attention[1].weights, wanted.attention[-1].weights)
    assert torch.equal(recording.queries[3], wanted.queries[3])


def test_default_blocks_are_the_last_of_each_kind(network):
    assert choose_blocks(network) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 1),
        (2, 2),
        (3, 0),
        (3, 1),
    ]
    assert choose_blocks(network, stage=2) == [(2, 1), (2, 2)]
    assert choose_blocks(network, stage=2, kind='global') == [(2, 1)]
    assert choose_blocks(network, stage=2, block=0) == [(2, 0)]


@pytest.mark.parametrize(
    ('choice', 'message'),
    [
        (dict(stage=4), '--stage 4 is not in this network: choose from 0, 1, 2, 3'),
        (dict(stage=-1), '--stage -1 is not in this network'),
        (dict(block=1), '--block 1 needs --stage'),
        (dict(stage=2, block=3), '--block 3 is not in stage 2: choose from 0, 1, 2'),
        (
            dict(stage=2, block=2, kind='global'),
            'block 2 of stage 2 is local, the global blocks are 1',
        ),
    ],
)
def test_a_stage_or_block_that_is_not_there(network, choice, message):
    with pytest.raises(UserError, match=message):
        choose_blocks(network, **choice)


def test_a_network_without_global_blocks(images):
    network = GCViT(ARCH, window_size=4, attention_types=('local',)).eval()
    with pytest.raises(UserError, match='this network has no global attention'):
        choose_blocks(network, kind='global')
    with pytest.raises(UserError, match='block 0 of stage 1 is local, it has no global block'):
        choose_blocks(network, stage=1, block=0, kind='global')
    assert choose_blocks(network) == [(0, 1), (1, 1), (2, 2), (3, 1)]
    with torch.no_grad(), record(network, choose_blocks(network)) as recording:
        network(images)
    assert recording.queries == {} and len(recording.attention) == 4


def test_a_model_without_gc_vit():
    with pytest.raises(UserError, match='the Sequential of this config has no GC ViT'):
        find_backbone(nn.Sequential(nn.Linear(2, 2)))


# original height and width; what the test pipeline does to the image
PIPELINES = {
    'plain': ((40, 60), []),
    'resized and padded': (
        (40, 60),
        [
            dict(type='Resize', scale=(120, 90), keep_ratio=True),
            dict(type='Pad', size_divisor=32),
        ],
    ),
    'other ratio': ((40, 60), [dict(type='Resize', scale=(93, 71), keep_ratio=False)]),
    'center crop': (
        (80, 120),
        [
            dict(type='mmpretrain.ResizeEdge', scale=64, edge='short'),
            dict(type='CenterCrop', crop_size=48),
        ],
    ),
}


@pytest.mark.parametrize('name', PIPELINES)
def test_cells_and_pixels_correspond(name):
    """Every pixel's own coordinates, as colors, tell where the pipeline has brought it."""
    from mmcv.transforms import Compose
    from mmpretrain.datasets.transforms import ResizeEdge  # noqa: F401, registers it

    (height, width), transforms = PIPELINES[name]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([y, x, y], -1)
    results = dict(img=image, ori_shape=(height, width), img_shape=(height, width))
    results = Compose(transforms)(results)
    placement = Placement.of_sample(results)
    seen = placement.seen
    checked = 0
    for row in range(0, height, 7):
        for column in range(0, width, 7):
            inside = (seen[0].start <= row < seen[0].stop) and (
                seen[1].start <= column < seen[1].stop
            )
            if not inside:
                with pytest.raises(UserError, match='is outside of the part of this'):
                    placement.cell(column, row, 4)
                continue
            i, j = placement.cell(column, row, 4)
            cell = results['img'][4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            cell = cell[: placement.seen_size[0] - 4 * i, : placement.seen_size[1] - 4 * j]
            # one pixel, for the interpolation of the resize
            assert cell[..., 0].min() - 1 <= row <= cell[..., 0].max() + 1
            assert cell[..., 1].min() - 1 <= column <= cell[..., 1].max() + 1
            checked += 1
    assert checked > 20
    # and back: a map of the cells' rows, at the image's resolution
    cells = np.add.outer(np.arange(40), np.zeros(40))
    on_image = placement.to_image(cells, (4, 4))
    assert on_image.shape == (height, width)
    assert np.isnan(on_image).sum() == height * width - on_image[seen].size
    wanted = [
        [placement.cell(c, r, 4)[0] for c in range(width)[seen[1]]] for r in range(height)[seen[0]]
    ]
    assert np.array_equal(on_image[seen], wanted)
    # between the centers of cells, the smooth map of a ramp is the ramp
    smooth = placement.to_image(cells, (4, 4), smooth=True)[seen][:, 0]
    exact = ((np.arange(height) + 0.5) * placement.scale[0] - placement.crop[0]) / 4 - 0.5
    assert np.abs(smooth - np.maximum(exact[seen[0]], 0)).max() < 0.02


def test_a_rectangle_of_cells_on_the_image():
    placement = Placement((80, 120), (48, 48), (0.8, 0.8), (8, 24))
    assert placement.box_on_image((0, 0, 2, 3), 8) == pytest.approx((10, 30, 20, 30))


@pytest.mark.parametrize(
    ('metainfo', 'message'),
    [
        (dict(img_shape=(4, 4)), 'no ori_shape'),
        (dict(ori_shape=(4, 4), img_shape=(4, 4), flip=True), 'flips images'),
    ],
)
def test_a_pipeline_that_cannot_be_undone(metainfo, message):
    with pytest.raises(UserError, match=message):
        Placement.of_sample(metainfo)


def test_blocks_without_places_are_left_out_of_the_sheet():
    from mmgcvit.models.variants import GCViTVariant
    from mmgcvit.visualization.maps import blocks_to_record

    arch = dict(
        embed_dims=8,
        depths=(1, 2, 1, 1),
        num_heads=(1, 1, 1, 1),
        mlp_ratio=2,
        layer_scale_init_value=None,
    )
    settings = dict(window_size=4, out_indices=(1,))
    backbone = GCViTVariant(arch, 'global_kv', **settings)
    assert blocks_to_record(backbone, [(1, 0)]) == [(0, 0), (1, 0)]
    # a chosen one is refused by its module
    assert blocks_to_record(backbone, [(1, 1)]) == [(0, 0), (1, 0), (1, 1)]
