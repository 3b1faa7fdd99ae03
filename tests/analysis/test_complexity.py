"""Parameters and multiply-accumulates against the paper's and against hand counts."""

import json
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import pytest
import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import MMLogger
from tiers import only_quick
from torch import nn

from mmgcvit import GCViT
from mmgcvit.analysis import build_on_meta, complexity_of, count_complexity
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


# Swin computes values when it is built; test_variants.py counts it
@pytest.mark.parametrize(
    'name', [name for name in MODELS if name not in PUBLISHED and 'swin' not in name]
)
def test_parameters_of_the_other_networks_are_the_metafiles(name):
    model = build_on_meta(load_config(ROOT / MODELS[name]['Config']))
    params = sum(p.numel() for p in model.parameters())
    assert params == MODELS[name]['Metadata']['Parameters']


def test_tool_prints_and_writes_the_numbers(load_tool, capsys, tmp_path):
    name = 'cascade-mask-rcnn_gcvit-xxt_fpn_3x_coco'
    config = str(ROOT / MODELS[name]['Config'])
    load_tool('get_flops').main([config, '--shape', '96', '128', '--json', str(tmp_path / 'f')])
    printed = capsys.readouterr().out
    assert f'{name}, one image of 96×128, 1000 proposals, 100 masks' in printed
    assert '69.63 M' in printed and 'not published' in printed
    written = json.loads((tmp_path / 'f').read_text())
    assert written['shape'] == [96, 128] and written['params'] == 69630350
    assert f'{written["macs"] / 1e9:.1f} G' in printed


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [([], '58 M, 947 G\n'), (['64', '64'], '58 M, 947 G (at a different image size)\n')],
)
def test_tool_prints_the_papers(load_tool, capsys, shape, expected):
    config = str(ROOT / MODELS[UPERNET]['Config'])
    load_tool('get_flops').main([config, *(['--shape', *shape] if shape else [])])
    printed = capsys.readouterr().out
    assert expected in printed
    assert ('512×2048' if not shape else '64×64') in printed


def test_tool_refuses_what_it_cannot_count(load_tool, tmp_path):
    tool = load_tool('get_flops')
    with pytest.raises(UserError, match='--shape 0 5 is not allowed'):
        tool.main([str(ROOT / MODELS[UPERNET]['Config']), '--shape', '0', '5'])
    (tmp_path / 'empty.py').write_text('lr = 1\n')
    with pytest.raises(UserError, match='none of roi_head'):
        tool.main([str(tmp_path / 'empty.py')])


def of_library(library, name):
    return load_config(Path(library.__file__).parent / '.mim' / 'configs' / name)


def test_a_model_of_known_products():
    """ResNet-50 has 4.09 G multiply-accumulates for an image of 224 by 224."""
    found = complexity_of(of_library(mmpretrain, 'resnet/resnet50_8xb32_in1k.py'), (224, 224))
    assert found.macs / 1e9 == pytest.approx(4.09, abs=0.005)
    assert found.params == 25557032
    assert not found.has_windows and found.naive_macs == found.macs


class Decides(nn.Module):
    """Attention of both kinds of torch, in a forward pass that depends on values."""

    def __init__(self, depends):
        super().__init__()
        self.depends = depends
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, images, mode):
        if self.depends and images.sum() < 0:
            return None
        x = images.flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])


def test_attention_counts_on_the_cpu_what_it_counts_on_the_meta_device():
    flash = torch.backends.cuda.flash_sdp_enabled()
    with torch.device('meta'):
        shapes_alone = count_complexity(Decides(depends=False).eval(), (4, 5))
    found = count_complexity(Decides(depends=True).eval(), (4, 5))
    assert found.macs == shapes_alone.macs == 20 * 4 * 9 + 2 * 2 * 20 * 20 * 3
    assert (shapes_alone.counted, found.counted) == ('', 'forward pass, on random values')
    assert torch.backends.cuda.flash_sdp_enabled() == flash


@pytest.mark.parametrize(('cls', 'others'), [(DeformConv2d, 1), (ModulatedDeformConv2d, 2)])
def test_deformable_convolutions_are_counted(cls, others):
    class Deforms(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = cls(3, 8, 3, padding=1)

        def forward(self, images, mode):
            offset = images.new_zeros(1, 18, *images.shape[2:])
            masks = [images.new_ones(1, 9, *images.shape[2:])] * (others - 1)
            return self.conv(images, offset, *masks)

    assert count_complexity(Deforms().eval(), (6, 7)).macs == 6 * 7 * 8 * 3 * 9


ON_VALUES = 'forward pass, on random values'


@pytest.mark.parametrize(
    ('library', 'name', 'counted'),
    [
        (mmdet, 'retinanet/retinanet_r18_fpn_1x_coco.py', ''),
        (mmdet, 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '1000 proposals'),
        (mmdet, 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '1000 proposals, 100 masks'),
        (mmdet, 'detr/detr_r18_8xb2-500e_coco.py', ''),
        (mmdet, 'dino/dino-4scale_r50_8xb2-12e_coco.py', ON_VALUES),
        (mmdet, 'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', ON_VALUES),
        (mmdet, 'solo/solo_r50_fpn_1x_coco.py', ''),
        (mmdet, 'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', ''),
        (mmdet, 'centernet/centernet_r18_8xb16-crop512-140e_coco.py', ''),
        (mmdet, 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
         'inference, on random values'),
        pytest.param(mmdet, 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', ON_VALUES,
                     marks=pytest.mark.nightly),
        pytest.param(mmdet, 'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py', ON_VALUES,
                     marks=pytest.mark.nightly),
        (mmseg, 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', ''),
        pytest.param(mmseg, 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', ON_VALUES,
                     marks=pytest.mark.nightly),
        (mmpretrain, 'swin_transformer/swin-tiny_16xb64_in1k.py', ''),
        (mmpretrain, 'simclr/simclr_resnet50_8xb32-coslr-200e_in1k.py', ''),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_models_of_every_kind_are_counted(library, name, counted):
    level = MMLogger.get_current_instance().level
    found = complexity_of(of_library(library, name), (224, 224))
    assert found.counted == counted
    assert found.params > 1e6 and found.macs > 1e8 and found.naive_macs == found.macs
    assert MMLogger.get_current_instance().level == level


@pytest.mark.parametrize(
    ('model', 'reason'),
    [
        (dict(type='NoSuchDetector'), 'cannot be built here .*NoSuchDetector'),
        (dict(type='mmgcvit.GCViT', arch='none'), 'cannot be built here .*arch'),
        (dict(type='mmpretrain.ImageClassifier', backbone=dict(type='LeNet5', num_classes=3)),
         'ImageClassifier of .* does not run on a single random image .*channels'),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_one_line(tmp_path, model, reason):
    (tmp_path / 'config.py').write_text(f"model = {model}\ndefault_scope = 'mmpretrain'\n")
    with pytest.raises(UserError, match=reason) as error:
        complexity_of(load_config(tmp_path / 'config.py'), (32, 32))
    assert '\n' not in str(error.value) and 'config.py' in str(error.value)


def test_types_that_are_classes_and_images_with_other_channels(load_tool, tmp_path, capsys):
    (tmp_path / 'config.py').write_text(
        'from mmpretrain.models import ClsDataPreprocessor, CrossEntropyLoss\n'
        'from mmpretrain.models import GlobalAveragePooling, LinearClsHead, ResNet\n'
        'from mmpretrain.models import ImageClassifier\n'
        'default_scope = None\n'
        'model = dict(\n'
        '    type=ImageClassifier,\n'
        '    data_preprocessor=dict(type=ClsDataPreprocessor),\n'
        '    neck=dict(type=GlobalAveragePooling),\n'
        '    backbone=dict(type=ResNet, depth=18, in_channels=4, num_stages=4),\n'
        '    head=dict(type=LinearClsHead, num_classes=2, in_channels=512,\n'
        '              loss=dict(type=CrossEntropyLoss)))\n'
    )
    load_tool('get_flops').main([str(tmp_path / 'config.py'), '--shape', '64', '64'])
    printed = capsys.readouterr().out
    assert 'config, one image of 64×64\n' in printed and 'parameters' in printed
    assert 'padded' not in printed and 'paper' not in printed


def test_the_config_is_not_changed(tmp_path):
    cfg = of_library(mmdet, 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    before = Config(cfg.to_dict()).pretty_text
    build_on_meta(cfg)
    assert Config(cfg.to_dict()).pretty_text == before


def test_parts_that_are_not_called_are_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
            self.head = nn.ModuleDict(dict(first=nn.Conv2d(2, 1, 1), second=nn.Conv2d(2, 1, 1)))
            self.auxiliary_head = nn.Sequential(nn.Conv2d(2, 1, 1))

        def forward(self, images, mode):
            return self.head['first'](self.neck(images))

    found = count_complexity(Model(), (4, 5))
    assert found.not_called == ('head.second', 'auxiliary_head')
    assert found.macs == 4 * 5 * (3 * 2 + 2)
