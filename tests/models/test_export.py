"""Graphs for images of any sides: exported to ONNX and by torch.export."""

import re
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nano import NANO

import mmgcvit
from mmgcvit import GCViT
from mmgcvit.models import stage
from mmgcvit.models.windows import PaddedLayout, WindowLayout

PAGE = Path(__file__).parents[2] / 'docs/export.md'
DYNAMIC = {'images': {0: 'batch', 2: 'height', 3: 'width'}}

# none of them the example's: whole windows in all maps, in none, a map in one window, one pixel
SIZES = [(1, 256, 128), (3, 67, 171), (1, 150, 9), (2, 33, 50), (1, 1, 1)]


@pytest.fixture(scope='module')
def model():
    """As few blocks as show a stage after a stage, with generators that do and do not pool."""
    torch.manual_seed(0)
    arch = {**NANO, 'depths': (2, 2, 2, 1)}
    return GCViT(
        arch, 3, (4, 4, 3, 3), query_downsamples=(3, 1, 0, 0), out_indices=(0, 1, 2)
    ).eval()


def dynamo(model, images, path):
    """As the documentation says, but with a smaller network."""
    (snippet,) = re.findall('```python\n(import torch\n.*?)```', PAGE.read_text(), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmgcvit, 'GCViT', lambda arch: model)
        patch.chdir(path.parent)
        exec(snippet, {})


def torchscript(model, images, path):
    with warnings.catch_warnings():
        # it is deprecated, and it warns of every check of the sides
        warnings.simplefilter('ignore')
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=['images'],
            output_names=['map0', 'map1', 'map2'],
            dynamic_axes=DYNAMIC,
            dynamo=False,
        )


@pytest.fixture(
    scope='module', params=[dynamo, torchscript], ids=lambda exporter: exporter.__name__
)
def session(request, model, tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'gcvit.onnx'
    request.param(model, torch.randn(2, 3, 75, 90), path)
    return onnxruntime.InferenceSession(path)


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max() / b.abs().max()) < 2e-5


def test_onnx_takes_images_of_any_sides(session, model):
    (images,) = session.get_inputs()
    assert images.shape == ['batch', 3, 'height', 'width']
    for batch, *sides in SIZES:
        images = torch.randn(batch, 3, *sides)
        with torch.no_grad():
            expected = model(images)
        found = session.run(None, {'images': images.numpy()})
        assert_close([torch.from_numpy(x) for x in found], expected)


def test_torch_export_takes_images_of_other_sides(nano):
    model = GCViT(nano, window_size=4, out_indices=(1,)).eval()
    shapes = {'images': dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    example = torch.randn(2, 3, 75, 90)
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
    for batch, *sides in [(1, 64, 128), (3, 107, 40)]:
        images = torch.randn(batch, 3, *sides)
        with torch.no_grad():
            assert_close(exported(images), model(images))


def test_graphs_for_one_size_pad_nothing(nano, monkeypatch):
    monkeypatch.setattr(stage, 'PaddedLayout', None)
    model = GCViT(nano, window_size=4, out_indices=(0,)).eval()
    images = torch.randn(1, 3, 75, 90)
    exported = torch.export.export(model, (images,)).module()
    with torch.no_grad():
        assert_close(exported(images), model(images))


sides = st.integers(1, 20)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), height=sides, width=sides, window=st.integers(1, 8))
def test_padded_windows(batch, height, width, window):
    layout = PaddedLayout(batch, height, width, window)
    maps = 1 + torch.arange(batch * height * width * 2.0).view(batch, height, width, 2)
    tokens = layout.pack(maps)
    assert torch.equal(layout.unpack(tokens), maps)
    assert len(tokens) == layout.num_padded_tokens
    (only,) = layout.split(tokens)
    assert torch.equal(only, tokens)
    assert torch.equal(layout.zero_padding(tokens + 1), (tokens + 1) * (tokens > 0))
    whole = torch.nn.functional.pad(maps, (0, 0, 0, -width % window, 0, -height % window))
    assert torch.equal(tokens, WindowLayout.of_maps(*whole.shape[:3], window).pack(whole))


@pytest.mark.parametrize('size', SIZES)
def test_padding_changes_no_output(model, monkeypatch, size):
    batch, *sides = size
    images = torch.randn(batch, 3, *sides)
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr(stage, 'serves_other_sides', lambda *sides: True)
        assert_close(model(images), expected)
