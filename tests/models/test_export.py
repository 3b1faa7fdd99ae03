"""Export to ONNX and with torch.export, as graphs that accept images of any size."""

import inspect
import re
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from graphs import EXAMPLE, SIZES, assert_close, assert_same_gradients, build, gradients, images_of

import mmgcvit
from mmgcvit import GCViT
from mmgcvit.ops import windows

PAGE = Path(__file__).parents[2] / 'docs/graph_modes.md'
DYNAMIC = {'images': {0: 'batch', 2: 'height', 3: 'width'}}


needs_torch_export = pytest.mark.skipif(
    not hasattr(torch.export, 'Dim'),
    reason='torch.export of torch 2.1 has no dynamic shapes, and does not support our classes',
)


@pytest.fixture(scope='module')
def model():
    return build(out_indices=(0, 1, 2)).eval()


def dynamo(model, images, path):
    """Run the snippet from the documentation with a smaller network."""
    (snippet,) = re.findall('```python\n(import torch\n.*?)```', PAGE.read_text(), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmgcvit, 'GCViT', lambda arch: model)
        patch.chdir(path.parent)
        exec(snippet, {})


def torchscript(model, images, path):
    options = inspect.signature(torch.onnx.export).parameters
    with warnings.catch_warnings():
        # this exporter is deprecated, and it warns about every check of the input shape
        warnings.simplefilter('ignore')
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=['images'],
            output_names=['map0', 'map1', 'map2'],
            dynamic_axes=DYNAMIC,
            **{'dynamo': False} if 'dynamo' in options else {},  # not in torch 2.1
        )


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(dynamo, id='dynamo', marks=[pytest.mark.slow, needs_torch_export]),
        pytest.param(torchscript, id='torchscript'),
    ],
)
def session(request, model, tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'gcvit.onnx'
    request.param(model, images_of(EXAMPLE), path)
    return onnxruntime.InferenceSession(path)


def test_onnx_accepts_images_of_any_size(session, model):
    (images,) = session.get_inputs()
    assert images.shape == ['batch', 3, 'height', 'width']
    for size in SIZES:
        images = images_of(size)
        with torch.no_grad():
            expected = model(images)
        found = session.run(None, {'images': images.numpy()})
        assert_close([torch.from_numpy(x) for x in found], expected)


def export(model, any_size):
    shapes = None
    if any_size:
        shapes = {'images': dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    program = torch.export.export(model, (images_of(EXAMPLE),), dynamic_shapes=shapes)
    return program.module()


@needs_torch_export
def test_torch_export_accepts_other_image_sizes(nano):
    model = GCViT(nano, window_size=4, out_indices=(1,)).eval()
    exported = export(model, any_size=True)
    for size in [(1, 64, 128), (3, 107, 40)]:
        images = images_of(size)
        with torch.no_grad():
            assert_close(exported(images), model(images))


@needs_torch_export
@pytest.mark.parametrize('any_size', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('recompute', ['cheap', 'block'])
def test_exported_program_can_be_trained(nano, any_size, recompute):
    model = GCViT(nano, window_size=4, out_indices=(0,), recompute=recompute)
    exported, images = export(model, any_size), images_of(EXAMPLE)
    expected = gradients(model, images)
    assert_same_gradients(gradients(exported, images), expected)


@needs_torch_export
def test_graphs_for_a_fixed_size_do_not_pad(nano, monkeypatch):
    monkeypatch.setattr(windows, 'PaddedWindows', None)
    model = GCViT(nano, window_size=4, out_indices=(0,)).eval()
    images = torch.randn(1, 3, 75, 90)
    exported = torch.export.export(model, (images,)).module()
    with torch.no_grad():
        assert_close(exported(images), model(images))


@pytest.mark.parametrize('size', SIZES)
def test_padding_does_not_change_outputs(model, monkeypatch, size):
    images = images_of(size)
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr(windows, 'serves_other_sizes', lambda *sizes: True)
        assert_close(model(images), expected)
