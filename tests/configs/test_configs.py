"""Every config is read, built and run on one small image."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmgcvit.engine import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.glob('configs/*/*.py'))
    if path.parent.name != '_base_'
]


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_begins_with_launch_hardware_source_and_result(path):
    header = (ROOT / path).read_text().split('_base_')[0]
    for part in ('# Launch:', '# Hardware:', '# Source:', '# Result:', 'paper:', 'ours:'):
        assert part in header, part
    assert str(path) in header or 'tools/quickstart.sh' in header


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_builds_and_runs(path):
    cfg = load_config(ROOT / path)
    init_default_scope(cfg.default_scope)
    # pretrained weights are another test's business
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).eval()
    assert list(model.backbone.out_channels) == list(cfg.model.neck.in_channels)
    strides = list(model.roi_head.bbox_roi_extractor.featmap_strides)
    assert strides == list(model.backbone.strides)[: len(strides)]
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    )
    with torch.no_grad():
        (found,) = model.predict(torch.zeros(1, 3, 64, 96), [sample])
    assert found.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_norms_and_bias_tables_are_not_decayed(path):
    from mmengine.optim import build_optim_wrapper

    cfg = load_config(ROOT / path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    decay = {}
    for group in build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups:
        decay |= {id(p): group['weight_decay'] for p in group['params']}
    found = {name: decay[id(p)] for name, p in model.backbone.named_parameters()}
    for name, value in found.items():
        plain = 'norm' in name or name.endswith('relative_position_bias_table')
        assert (value == 0) == plain, name
