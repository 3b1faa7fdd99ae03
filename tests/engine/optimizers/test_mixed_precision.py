"""Mixed precision without a GPU: what is computed in which type, and which wrapper is used."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPERS, init_default_scope

from mmgcvit.engine import BFloat16OptimWrapper, adapt_amp, load_config
from mmgcvit.engine.adaptations import adapt_precision
from mmgcvit.engine.device import Machine
from mmgcvit.errors import UserError

DATA = Path(__file__).parents[2] / 'data'


def detector():
    return Config(dict(model=dict(type='MaskRCNN'), optim_wrapper=dict(type='AmpOptimWrapper')))


def segmentor():
    model = dict(type='EncoderDecoder', decode_head=dict())
    return Config(dict(model=model, optim_wrapper=dict(type='AmpOptimWrapper')))


CPU = Machine('cpu')


def classifier():
    cfg = segmentor()
    cfg.model = dict(type='ImageClassifier', head=dict())
    return cfg


OURS = 'mmgcvit.BFloat16OptimWrapper'


@pytest.mark.parametrize(
    ('cfg', 'device', 'dtype', 'used'),
    [
        (detector, 'cpu', None, OURS),
        (detector, 'cpu', 'float16', OURS),
        (segmentor, 'cpu', 'bfloat16', OURS),
        (detector, 'cuda', None, 'AmpOptimWrapper'),
        (detector, 'cuda', 'float16', 'AmpOptimWrapper'),
        (detector, 'cuda', 'bfloat16', OURS),
        (segmentor, 'cuda', 'bfloat16', 'AmpOptimWrapper'),
        (classifier, 'cuda', 'bfloat16', 'AmpOptimWrapper'),
        (classifier, 'cpu', 'float16', OURS),
    ],
)
def test_wrapper_by_device_and_dtype(cfg, device, dtype, used):
    cfg = cfg()
    given = dict(loss_scale='dynamic', dtype=dtype, clip_grad=dict(max_norm=1.0))
    cfg.optim_wrapper.update(given)
    adapt_precision(cfg, Machine(device))
    wrapper = cfg.optim_wrapper.to_dict()
    assert wrapper.pop('type') == used
    assert wrapper == (given if used == 'AmpOptimWrapper' else dict(clip_grad=given['clip_grad']))


def test_a_config_without_amp_stays_as_it_is():
    cfg = Config(dict(model=dict(), optim_wrapper=dict(type='OptimWrapper', dtype='x')))
    adapt_precision(cfg, CPU)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', dtype='x')


def test_amp_is_requested_of_wrappers_that_it_suits():
    cfg = Config(dict(optim_wrapper=dict(clip_grad=dict(max_norm=1.0))))
    adapt_amp(cfg, CPU)
    assert cfg.optim_wrapper == dict(
        type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=dict(max_norm=1.0)
    )
    cfg.optim_wrapper.loss_scale = 512.0
    adapt_amp(cfg, CPU)
    assert cfg.optim_wrapper.loss_scale == 512.0
    with pytest.raises(UserError, match=r'--amp needs .* the config has ApexOptimWrapper'):
        adapt_amp(Config(dict(optim_wrapper=dict(type='ApexOptimWrapper'))), CPU)


@pytest.fixture(autouse=True)
def fast_cpu(monkeypatch):
    """The networks are so small that they can be trained in bfloat16 on any CPU."""
    monkeypatch.setattr(f'{BFloat16OptimWrapper.__module__}.has_bfloat16', lambda device: True)


@pytest.fixture
def mask_rcnn(monkeypatch):
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    monkeypatch.syspath_prepend(str(DATA / 'scripts'))
    cfg = load_config(DATA / 'configs' / 'mask_rcnn_tiny.py')
    init_default_scope('mmdet')
    return MODELS.build(cfg.model)


def test_a_cpu_without_bfloat16_computes_in_float32(mask_rcnn, log, monkeypatch):
    monkeypatch.setattr(
        f'{BFloat16OptimWrapper.__module__}.has_bfloat16', lambda device: device != 'cpu'
    )
    optimizer = torch.optim.SGD(mask_rcnn.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type=OURS, optimizer=optimizer))
    assert any('this CPU has no instructions for bfloat16' in line for line in log)
    backbone, images = mask_rcnn.eval().backbone, torch.rand(1, 3, 64, 64)
    with wrapper.optim_context(mask_rcnn):
        found = backbone(images)
    assert all(map(torch.equal, found, backbone(images)))


def optimize(model, log):
    wrapper = OPTIM_WRAPPERS.build(
        dict(type=OURS, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    )
    assert isinstance(wrapper, BFloat16OptimWrapper)
    assert any('in bfloat16, everything else in float32' in line for line in log)
    return wrapper


def test_layers_compute_in_bfloat16_and_boxes_in_float32(mask_rcnn, log):
    from mmdet.testing import demo_mm_inputs

    found = {}

    def watch(name):
        def hook(module, inputs, output):
            found.setdefault(name, set()).add(output.dtype)

        return hook

    for name, module in mask_rcnn.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(watch(name.partition('.')[0]))
    received = []
    for extractor in (
        mask_rcnn.roi_head.bbox_roi_extractor,
        mask_rcnn.roi_head.mask_roi_extractor,
    ):
        extractor.register_forward_pre_hook(
            lambda module, inputs: received.extend([*inputs[0], inputs[1]])
        )
    data = demo_mm_inputs(
        2, image_shapes=[[3, 96, 128]] * 2, num_items=[2, 2], num_classes=3, with_mask=True
    )
    before = [p.detach().clone() for p in mask_rcnn.parameters()]
    losses = mask_rcnn.train_step(data, optimize(mask_rcnn, log))
    assert torch.isfinite(losses['loss']) and losses['loss'].dtype == torch.float32
    half, single = {torch.bfloat16}, {torch.float32}
    assert found == dict(backbone=half, neck=half, rpn_head=half, roi_head=half)
    assert {tensor.dtype for tensor in received} == single
    boxes = torch.cat([tensor.detach()[:, 1:] for tensor in received if tensor.dim() == 2])
    rounded = boxes == boxes.bfloat16().float()
    assert rounded.float().mean() < 0.5  # true of the image's edges
    parameters = list(mask_rcnn.parameters())
    assert {p.dtype for p in parameters} == single
    changed = [not torch.equal(p, old) for p, old in zip(parameters, before, strict=True)]
    assert sum(changed) > 0.8 * len(changed)

    # outside of a training step everything is as it was
    found.clear()
    mask_rcnn.eval().test_step(data)
    assert set.union(*found.values()) == single


def test_a_model_without_a_backbone_is_refused(log):
    model = torch.nn.Linear(2, 2)
    with (
        pytest.raises(UserError, match='Linear has none'),
        optimize(model, log).optim_context(model),
    ):
        pass
