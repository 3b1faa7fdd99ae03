"""Parameters and multiply-accumulates against the paper's and against hand counts."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load
from tiers import only_quick
from torch import nn

from mmgcvit import GCViT
from mmgcvit.analysis import build_on_meta, count_complexity
from mmgcvit.engine import load_config
from mmgcvit.errors import UserError
from mmgcvit.task import require_task

ROOT = Path(__file__).parents[2]
MODELS = {m['Name']: m for m in load(ROOT / 'metafile.yml')['Models'] if 'Config' in m}
MASK_RCNN, UPERNET = 'mask-rcnn_gcvit-t_fpn_3x_coco', 'upernet_gcvit-t_160k_ade20k-512x512'
PUBLISHED = [name for name, model in MODELS.items() if 'Paper FLOPs (G)' in model['Metadata']]


class Alone(nn.Module):
    """A backbone that is called as detectors and segmentors are."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        with torch.device('meta'):
            self.backbone = GCViT(*args, **kwargs)

    def forward(self, images, mode):
        return self.backbone(images)


@pytest.mark.parametrize(
    ('arch', 'linear', 'products'),
    [
        ('tiny', 107.54, 181.01),
        pytest.param('small', 204.85, 315.05, marks=pytest.mark.slow),
        pytest.param('base', 363.68, 510.62, marks=pytest.mark.slow),
    ],
)
def test_backbone_agrees_with_a_count_by_hand(arch, linear, products):
    found = count_complexity(Alone(arch), (800, 1280))
    assert found.naive_linear_macs / 1e9 == pytest.approx(linear, abs=0.005)
    assert found.naive_macs / 1e9 == pytest.approx(products, abs=0.005)
    assert found.macs <= found.naive_macs


def test_nothing_is_padded_where_windows_divide_the_map():
    found = count_complexity(Alone('xxtiny', window_size=7), (224, 224))
    assert found.macs == found.naive_macs > found.naive_linear_macs


def test_counting_leaves_no_hooks_behind():
    model = Alone('xxtiny')
    assert count_complexity(model, (64, 96)) == count_complexity(model, (64, 96))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_parts_of_a_detector_add_up():
    """1000 proposals in the box head, 100 in the mask head, by their layers' sizes."""
    cfg = load_config(ROOT / MODELS[MASK_RCNN]['Config'])
    model = build_on_meta(cfg)
    whole = count_complexity(model, (800, 1280)).macs
    model.roi_head.mask_head = model.roi_head.mask_roi_extractor = None
    without_masks = count_complexity(model, (800, 1280)).macs
    model.roi_head.bbox_head = model.roi_head.bbox_roi_extractor = None
    without_boxes = count_complexity(model, (800, 1280)).macs
    box_head = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320)
    assert without_masks - without_boxes == 1000 * box_head
    convs = 4 * 14 * 14 * 9 * 256 * 256
    mask_head = convs + 14 * 14 * 4 * 256 * 256 + 28 * 28 * 256 * 80
    assert whole - without_masks == 100 * mask_head


@pytest.mark.parametrize('name', only_quick(PUBLISHED, [MASK_RCNN, UPERNET]))
def test_published_networks_have_the_papers_size_and_the_metafiles_counts(name):
    model = MODELS[name]
    cfg = load_config(ROOT / model['Config'])
    found = count_complexity(build_on_meta(cfg), require_task(cfg).counted_shape)
    data = model['Metadata']
    # never tuned to it; docs/model_zoo.md says where the rest comes from
    assert found.params / 1e6 == pytest.approx(data['Paper Parameters (M)'], rel=0.02)
    counts = [data['Parameters'], data['FLOPs']]
    counts += [data['FLOPs (linear and convolution, padded)'], data['FLOPs (all products, padded)']]
    remedy = 'python tools/make_docs.py --measure'
    assert [found.params, found.macs, found.naive_linear_macs, found.naive_macs] == counts, remedy
    nearest = min(
        (found.naive_linear_macs, found.naive_macs),
        key=lambda macs: abs(macs / 1e9 - data['Paper FLOPs (G)']),
    )
    assert nearest / 1e9 == pytest.approx(data['Paper FLOPs (G)'], rel=0.05)


@pytest.mark.parametrize('name', [name for name in MODELS if name not in PUBLISHED])
def test_parameters_of_the_other_networks_are_the_metafiles(name):
    model = build_on_meta(load_config(ROOT / MODELS[name]['Config']))
    params = sum(p.numel() for p in model.parameters())
    assert params == MODELS[name]['Metadata']['Parameters']


def test_tool_prints_and_writes_the_numbers(load_tool, capsys, tmp_path):
    name = 'cascade-mask-rcnn_gcvit-xxt_fpn_3x_coco'
    config = str(ROOT / MODELS[name]['Config'])
    load_tool('get_flops').main([config, '--shape', '96', '128', '--json', str(tmp_path / 'f')])
    printed = capsys.readouterr().out
    assert f'{name}, one image of 128×96, 1000 proposals, 100 masks' in printed
    assert '69.63 M' in printed and 'not published' in printed
    written = json.loads((tmp_path / 'f').read_text())
    assert written['shape'] == [96, 128] and written['params'] == 69630350
    assert f'{written["macs"] / 1e9:.1f} G' in printed


@pytest.mark.parametrize(('shape', 'expected'), [([], '58 M, 947 G\n'), (['64', '64'], 'another')])
def test_tool_prints_the_papers(load_tool, capsys, shape, expected):
    config = str(ROOT / MODELS[UPERNET]['Config'])
    load_tool('get_flops').main([config, *(['--shape', *shape] if shape else [])])
    printed = capsys.readouterr().out
    assert expected in printed
    assert ('2048×512' if not shape else '64×64') in printed


def test_tool_refuses_what_it_cannot_count(load_tool, tmp_path):
    tool = load_tool('get_flops')
    with pytest.raises(UserError, match='--shape 0 5 is not allowed'):
        tool.main([str(ROOT / MODELS[UPERNET]['Config']), '--shape', '0', '5'])
    (tmp_path / 'empty.py').write_text('lr = 1\n')
    with pytest.raises(UserError, match='none of roi_head'):
        tool.main([str(tmp_path / 'empty.py')])
