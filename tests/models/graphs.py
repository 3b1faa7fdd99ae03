"""Helpers shared by the graph mode tests: a network, image sizes and comparisons."""

import torch
from nano import NANO

from mmgcvit import GCViT

EXAMPLE = (2, 75, 90)
# Batch size, height and width, all different from the example's. In order: no feature map needs
# padding, all do, one fits in a single window, one is smaller than a window, one is a single pixel.
SIZES = [(1, 256, 128), (3, 67, 171), (1, 150, 9), (2, 33, 50), (1, 1, 1)]


def build(**arguments):
    """A small network that still has every stage and query generators with and without pooling."""
    torch.manual_seed(0)
    arch = {**NANO, 'depths': (2, 2, 2, 1)}
    model = GCViT(arch, 3, (4, 4, 3, 3), query_downsamples=(3, 1, 0, 0), **arguments)
    with torch.no_grad():
        # biases are initialized with 0, so without this, padded tokens would hardly matter
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images_of(size):
    batch, height, width = size
    return torch.randn(batch, 3, height, width)


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max() / b.abs().max()) < 2e-5


def gradients(network, images, module=None):
    """Return the gradients of a module's parameters, the network's own if none is given."""
    module = network if module is None else module
    module.zero_grad()
    torch.manual_seed(1)
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum() for x in network(images))
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (found[name] - gradient).abs().max()
        assert difference <= 1e-4 * gradient.abs().max(), name
