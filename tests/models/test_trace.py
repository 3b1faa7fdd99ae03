"""torch.jit.trace: one trace accepts images of any size."""

import io
import warnings

import pytest
import torch
from graphs import EXAMPLE, SIZES, assert_close, assert_same_gradients, build, gradients, images_of

from mmgcvit import GCViT


def trace(model, size=EXAMPLE, **arguments):
    with warnings.catch_warnings():
        # the tracer warns about every check of the input shape
        warnings.simplefilter('ignore')
        return torch.jit.trace(model, images_of(size), **arguments)


def assert_takes_any_size(traced, model):
    for size in [EXAMPLE, *SIZES]:
        images = images_of(size)
        with torch.no_grad():
            assert_close(traced(images), model(images))


# with padding, without padding, and with feature maps of a single token
@pytest.mark.parametrize('example', [EXAMPLE, (1, 96, 96), (1, 1, 1)])
def test_trace_accepts_images_of_any_size(example):
    model = build().eval()
    assert_takes_any_size(trace(model, example), model)


def test_saved_and_frozen_traces_accept_images_of_any_size():
    model = build().eval()
    traced = trace(model)
    assert_takes_any_size(torch.jit.freeze(traced), model)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert_takes_any_size(loaded, model)
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize('recompute', ['none', 'cheap', 'block'])
def test_trace_can_be_trained_on_images_of_any_size(recompute):
    model = build(drop_path_rate=0, recompute=recompute).train()
    traced = trace(model)
    # twice, because PyTorch optimizes a graph after its first runs
    for size in 2 * [(2, 67, 90), (3, 64, 64), (2, 33, 50)]:
        images = images_of(size)
        expected = gradients(model, images)
        # the trace shares its parameters with the model
        assert_same_gradients(gradients(traced, images, model), expected)


@pytest.mark.parametrize('training', [True, False])
def test_trace_stays_in_the_recorded_mode(training):
    model = build(drop_path_rate=0.5).train(training)
    # check_trace runs the model twice and compares the outputs, which differ in training
    traced = trace(model, check_trace=not training).train(not training)
    images = images_of((8, 64, 64))
    with torch.no_grad():
        first, second = traced(images)[0], traced(images)[0]
    assert torch.equal(first, second) != training


def test_scripting_is_not_supported(nano):
    with warnings.catch_warnings():
        # deprecated
        warnings.simplefilter('ignore')
        with pytest.raises(torch.jit.frontend.NotSupportedError):
            torch.jit.script(GCViT(nano))
