"""Outputs of the published network for weights and inputs that can be regenerated."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmgcvit import GCViT
from mmgcvit.weights.layouts import to_nvidia

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'
CASES = json.loads((GOLDEN / 'index.json').read_text())
NATIVE_WINDOWS = (7, 7, 14, 7)


def draw(name, shape):
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return generator.standard_normal(shape).astype('float32')


def draw_parameter(name, shape):
    """Generate a parameter according to tests/data/golden/README.md."""
    t = draw(f'0/{name}', shape)
    if re.search(r'(^|\.)norm[0-3]\.weight$', name):
        return 1 + 0.2 * t
    if name.endswith('bias_table'):
        return 0.5 * t
    if name.endswith(('gamma1', 'gamma2')):
        return 0.5 + 0.2 * t
    if len(shape) > 1:
        return t / np.sqrt(np.prod(shape[1:])).astype('float32')
    return 0.2 * t


def case_arch(case):
    settings = case['arch_settings']
    return {
        'embed_dims': settings['dim'],
        'depths': settings['depths'],
        'num_heads': settings['heads'],
        'mlp_ratio': settings['mlp'],
        'layer_scale_init_value': 1e-5 if settings['gamma'] else None,
    }


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=GPU)])
@pytest.mark.parametrize('name', CASES)
def test_outputs_match_the_published_network(name, device, tmp_path, monkeypatch):
    # PyTorch uses TF32 in convolutions by default
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    case = CASES[name]
    arch = case_arch(case) if case['arch'] == 'nano' else case['arch']
    with torch.device('meta'):
        published = to_nvidia(GCViT(arch, window_size=NATIVE_WINDOWS).state_dict())
    shapes = {n: list(t.shape) for n, t in published.items()}
    if isinstance(case['parameters'], dict):
        assert shapes == case['parameters']
    else:
        assert sum(t.numel() for t in published.values()) == case['parameters']
    weights = {n: torch.from_numpy(draw_parameter(n, shape)) for n, shape in shapes.items()}
    torch.save({'state_dict': weights}, tmp_path / 'weights.pth.tar')

    model = GCViT(
        arch,
        window_size=case['windows'],
        query_downsamples=case['pools'],
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth.tar')),
    ).eval()
    model.init_weights()
    model.to(device)
    with torch.no_grad():
        maps = model(torch.from_numpy(draw(f'input/{name}', case['shape'])).to(device))

    golden = np.load(GOLDEN / f'{name}.npz')
    assert [list(m.shape) for m in maps] == case['maps']
    for i, found in enumerate(maps):
        wanted = golden[f'map{i}']
        found = found.cpu().flatten().numpy()[: len(wanted)]
        assert np.abs(found - wanted).max() <= 2e-5 * np.abs(wanted).max(), f'map{i}'


@pytest.mark.parametrize(
    ('arch', 'millions'),
    [
        ('xxtiny', 11.48),
        ('xtiny', 19.47),
        ('tiny', 27.71),
        ('tiny2', 34.02),
        ('small', 50.32),
        ('small2', 67.85),
        ('base', 89.30),
        ('large', 200.54),
    ],
)
def test_parameter_counts_of_the_published_sizes(arch, millions):
    with torch.device('meta'):
        model = GCViT(arch, window_size=NATIVE_WINDOWS)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
