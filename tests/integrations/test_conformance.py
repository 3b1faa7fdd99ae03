"""Every framework gets the same four maps from the same weights."""

import ast
import importlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import mmgcvit
from mmgcvit import GCViT
from mmgcvit.weights import load_pretrained

SETTINGS = dict(window_size=4)


@dataclass
class Adapted:
    """A framework's model: the part that is GC ViT, its maps, and what it says of them."""

    model: torch.nn.Module
    network: torch.nn.Module
    maps: Any
    channels: list[int]
    strides: list[int]


def of_torchvision():
    adapter = importlib.import_module('mmgcvit.integrations.torchvision')
    model = adapter.GCViTWithFPN(GCViT('xxtiny', **SETTINGS), out_channels=8)
    taken = []
    model.fpn.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))

    def maps(images):
        pyramid = model(images)
        assert list(pyramid) == ['0', '1', '2', '3', 'pool']
        assert {x.shape[1] for x in pyramid.values()} == {model.out_channels}
        return list(taken.pop().values())

    return Adapted(model, model.body, maps, model.body.out_channels, model.body.strides)


def of_timm():
    timm = pytest.importorskip('timm')
    importlib.import_module('mmgcvit.integrations.timm')
    model = timm.create_model('mmgcvit_xxtiny', features_only=True, **SETTINGS)
    info = model.feature_info
    return Adapted(model, model, model, info.channels(), info.reduction())


def of_timm_intermediates():
    adapted = of_timm()

    def maps(images):
        last, chosen = adapted.model.forward_intermediates(images, indices=4)
        assert last is chosen[-1]
        return chosen

    adapted.maps = maps
    return adapted


def of_segmentation_models():
    smp = pytest.importorskip('segmentation_models_pytorch')
    importlib.import_module('mmgcvit.integrations.timm')
    model = smp.encoders.get_encoder('tu-mmgcvit_xxtiny', weights=None, **SETTINGS)
    assert model.out_channels[:2] == [3, 0]
    strides = model.model.feature_info.reduction()
    return Adapted(model, model.model, lambda x: model(x)[2:], model.out_channels[2:], strides)


def of_hugging_face():
    pytest.importorskip('huggingface_hub')
    adapter = importlib.import_module('mmgcvit.integrations.hugging_face')
    model = adapter.HubGCViT('xxtiny', **SETTINGS)
    return Adapted(model, model, model, model.out_channels, model.strides)


def of_transformers():
    transformers = pytest.importorskip('transformers', '5.0')
    adapter = importlib.import_module('mmgcvit.integrations.transformers')
    config = adapter.GCViTConfig(arch='xxtiny', **SETTINGS)
    model = transformers.AutoBackbone.from_config(config)
    strides = [4 * 2**i for i in model.out_indices]
    return Adapted(model, model.backbone, lambda x: model(x).feature_maps, model.channels, strides)


def of_detectron2():
    adapter = importlib.import_module('mmgcvit.integrations.detectron2')
    model = adapter.Detectron2GCViT('xxtiny', **SETTINGS)
    shapes = model.output_shape()
    assert list(shapes) == ['res2', 'res3', 'res4', 'res5']

    def maps(images):
        named = model(images)
        assert list(named) == list(shapes)
        return list(named.values())

    channels, strides = ([getattr(s, k) for s in shapes.values()] for k in ('channels', 'stride'))
    return Adapted(model, model, maps, channels, strides)


@pytest.fixture(scope='module')
def reference():
    torch.manual_seed(1)
    model = GCViT('xxtiny', **SETTINGS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope='module')
def weights(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'weights.pth'
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(
    scope='module',
    params=[
        of_torchvision,
        of_timm,
        of_timm_intermediates,
        of_segmentation_models,
        of_hugging_face,
        of_transformers,
        of_detectron2,
    ],
    ids=lambda make: make.__name__.removeprefix('of_'),
)
def adapted(request, weights):
    adapted = request.param()
    load_pretrained(adapted.network, weights)
    return adapted


@pytest.mark.parametrize('size', [(64, 96), (33, 50), (1, 1)])
def test_maps_are_the_same(adapted, reference, size):
    images = torch.randn(2, 3, *size)
    adapted.model.eval()
    with torch.no_grad():
        wanted = reference.eval()(images)
        found = adapted.maps(images)
    assert len(found) == 4
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert torch.equal(a, b)
        sides = [math.ceil(side / adapted.strides[i]) for side in size]
        assert a.shape == (2, adapted.channels[i], *sides)
    assert tuple(adapted.channels) == (64, 128, 256, 512)
    assert tuple(adapted.strides) == (4, 8, 16, 32)


def test_training_is_the_same(adapted, reference):
    """With stochastic depth, which differs from eval mode, and a gradient for every parameter."""
    images = torch.randn(6, 3, 40, 40)  # enough that no block is dropped for all
    gradients = []
    for model, network, maps in (
        (reference, reference, reference),
        (adapted.model, adapted.network, adapted.maps),
    ):
        assert model.train() is model
        model.zero_grad()
        torch.manual_seed(3)
        outputs = maps(images)
        sum(out.square().mean() for out in outputs).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    wanted, found = gradients
    assert {name.removeprefix('backbone.') for name in found} == set(wanted)
    for name, gradient in wanted.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(found[name], gradient), name
    adapted.model.eval()
    with torch.no_grad():
        evaluated = adapted.maps(images)
    assert not torch.equal(evaluated[-1], outputs[-1])


def test_each_module_imports_its_framework_only():
    folder = Path(mmgcvit.__file__).parent / 'integrations'
    allowed = {
        '__init__': set(),
        'detectron2': {'detectron2'},
        'hugging_face': {'huggingface_hub', 'yaml'},
        'timm': {'timm'},
        'torchvision': {'torchvision'},
        'transformers': {'transformers'},
    }
    standard = {*sys.stdlib_module_names, 'torch'}
    found = {}
    for path in folder.glob('*.py'):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition('.')[0])
            elif isinstance(node, ast.ImportFrom) and node.level == 1:
                names.add(f'.{node.module}')  # another adapter
        found[path.stem] = names - standard
    assert found == allowed
