"""torch.fx: one graph accepts images of any size and matches the network."""

import copy
import pickle

import pytest
import torch
from graphs import EXAMPLE, SIZES, build, gradients, images_of
from torch.fx import symbolic_trace
from torchvision.models.feature_extraction import create_feature_extractor


def assert_equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('size', [EXAMPLE, *SIZES])
def test_graph_gives_the_same_values_for_any_size(size):
    model = build().eval()
    graph = symbolic_trace(model)
    graph.graph.lint()
    images = images_of(size)
    with torch.no_grad():
        assert_equal(graph(images), model(images))


@pytest.mark.parametrize(
    'copied',
    [lambda graph: graph, copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))],
    ids=['itself', 'deepcopy', 'pickle'],
)
@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_graph_can_be_trained(recompute, copied):
    model = build(drop_path_rate=0.5, drop_rate=0.1, recompute=recompute).train()
    graph = copied(symbolic_trace(model))
    for size in [EXAMPLE, (2, 33, 50)]:
        images = images_of(size)
        expected, found = gradients(model, images), gradients(graph, images)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # the graph runs the same operations in the same order
            assert torch.allclose(found[name], gradient, rtol=1e-6, atol=0), name


@pytest.mark.parametrize('training', [True, False])
def test_graph_stays_in_the_recorded_mode(training):
    model = build(drop_path_rate=0.5).train(training)
    graph = symbolic_trace(model).train(not training)
    images = images_of((8, 64, 64))
    with torch.no_grad():
        first, second = graph(images)[0], graph(images)[0]
    assert torch.equal(first, second) != training


@pytest.mark.parametrize('shape', [(1, 4, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_graph_rejects_invalid_inputs(shape):
    graph = symbolic_trace(build())
    with pytest.raises(ValueError, match=r'takes \(B, 3, H, W\) with H and W at least 1'):
        graph(torch.randn(shape))


def test_torchvision_extracts_features_of_stages_and_blocks():
    model = build().eval()
    modules = {
        # in a stage with a downsampler, the downsampler's operation is the last one
        'stages.0.merge': model.stages[0],
        'stages.0': model.stages[0].downsample,
        'stages.3': model.stages[3],
        'stages.1.blocks.0': model.stages[1].blocks[0],
        'stages.2.blocks.1.attn': model.stages[2].blocks[1].attn,
        'norm2': model.norm2,
    }
    expected = {}
    extractor = create_feature_extractor(model, list(modules))
    for name, module in modules.items():
        module.register_forward_hook(lambda _, args, out, name=name: expected.update({name: out}))
    for size in [EXAMPLE, *SIZES]:
        images = images_of(size)
        with torch.no_grad():
            model(images)
            found = extractor(images)
        assert found.keys() == expected.keys()
        assert_equal(found.values(), [expected[name] for name in found])
