"""torch.compile: one graph without breaks serves many image sizes and gives the same gradients."""

import pytest
import torch
from graphs import assert_same_gradients, gradients

from mmgcvit import GCViT

# torch.compiler.is_compiling exists since torch 2.3
pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_compiling'),
    reason='torch.compile of torch 2.1 does not support classes such as Region in a graph',
)
# each feature map has at least two rows and two columns of windows, with or without padding
SIZES = [(75, 90), (107, 130), (64, 96), (128, 128), (67, 101)]


class Counting:
    """A backend that counts graphs and runs them with another backend, by default eagerly."""

    def __init__(self, backend=None):
        self.graphs = 0
        self.backend = backend

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return self.backend(graph, example_inputs) if self.backend else graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


def build(nano, *depths, **arguments):
    """Build a network with few blocks, since tracing takes seconds per block."""
    arch = {**nano, 'depths': (*depths, 1, 1, 1, 1)[:4]}
    return GCViT(arch, window_size=4, out_indices=range(len(depths)), **arguments)


def assert_same_outputs(compiled, model, images):
    with torch.no_grad():
        for a, b in zip(compiled(images), model(images), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def bytes_kept(network, images):
    """Return the bytes that the forward pass saves for the backward pass."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(images)
    del outputs
    return sum(sizes.values())


# without dynamic=True, PyTorch assumes that all images have the size of the first one
@pytest.mark.parametrize(
    ('dynamic', 'graphs'),
    [(True, [1, 1]), pytest.param(None, [1, 2], marks=pytest.mark.slow)],
)
def test_one_graph_for_images_of_many_sizes(nano, dynamic, graphs):
    model = build(nano, 2, 1).eval()
    backend = Counting()
    compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    assert_same_outputs(compiled, model, torch.randn(2, 3, *SIZES[0]))
    assert backend.graphs == graphs[0]
    for size in SIZES[1:]:
        assert_same_outputs(compiled, model, torch.randn(2, 3, *size))
    assert backend.graphs == graphs[1]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ('dynamic', 'recompute'),
    [
        pytest.param((), 'cheap', id='fixed-cheap'),
        pytest.param((), 'none', id='fixed-none', marks=slow),
        pytest.param((), 'block', id='fixed-block', marks=slow),
        pytest.param((2, 3), 'cheap', id='any size-cheap', marks=slow),
        pytest.param((2, 3), 'none', id='any size-none', marks=slow),
        pytest.param((2, 3), 'block', id='any size-block', marks=slow),
    ],
)
def test_training_step(nano, dynamic, recompute):
    model = build(nano, 2, recompute=recompute)
    backend = Counting(torch._dynamo.lookup_backend('aot_eager'))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    images = torch.randn(2, 3, *SIZES[0])
    # torch.compile raises an error if it specializes a dimension that is marked as dynamic
    torch._dynamo.mark_dynamic(images, dynamic)
    expected = gradients(model, images)
    assert_same_gradients(gradients(compiled, images, model), expected)
    if dynamic:
        others = torch.randn(2, 3, *SIZES[1])
        expected = gradients(model, others)
        assert_same_gradients(gradients(compiled, others, model), expected)
    if recompute == 'block':
        everything = bytes_kept(build(nano, 2, recompute='none'), images)
        assert bytes_kept(compiled, images) < 0.7 * everything
    assert backend.graphs == 1
