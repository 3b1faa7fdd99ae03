"""torch.compile: one graph without breaks for images of many sizes, and the same gradients."""

import pytest
import torch

from mmgcvit import GCViT

# with one window below another and one beside another in each map, padded or not
SIZES = [(75, 90), (107, 130), (64, 96), (128, 128), (67, 101)]


class Counting:
    """A backend that compiles nothing."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def build(nano, *depths):
    """Tracing takes seconds a block."""
    arch = {**nano, 'depths': (*depths, 1, 1, 1, 1)[:4]}
    return GCViT(arch, window_size=4, out_indices=range(len(depths)))


def assert_same_maps(compiled, model, images):
    with torch.no_grad():
        for a, b in zip(compiled(images), model(images), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


# without dynamic=True PyTorch takes the first image's sides to be those of all
@pytest.mark.parametrize(
    ('dynamic', 'graphs'),
    [(True, [1, 1]), pytest.param(None, [1, 2], marks=pytest.mark.slow)],
)
def test_one_graph_for_images_of_many_sizes(nano, dynamic, graphs):
    model = build(nano, 2, 1).eval()
    backend = Counting()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    assert_same_maps(compiled, model, torch.randn(2, 3, *SIZES[0]))
    assert backend.graphs == graphs[0]
    for size in SIZES[1:]:
        assert_same_maps(compiled, model, torch.randn(2, 3, *size))
    assert backend.graphs == graphs[1]


@pytest.mark.parametrize(
    'dynamic',
    [pytest.param((), id='fixed', marks=pytest.mark.slow), pytest.param((2, 3), id='any sides')],
)
def test_training_step(nano, dynamic):
    model = build(nano, 2)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    images, target = torch.randn(2, 3, *SIZES[0]), torch.randn(2, 8, 19, 23)
    # marked ones that are recorded as constants are an error
    torch._dynamo.mark_dynamic(images, dynamic)
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        (network(images)[0] * target).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        difference = (gradients[1][name] - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max(), name
