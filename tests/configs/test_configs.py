"""Every config is read, built and run on one small image."""

import ast
import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmgcvit.engine import load_config
from mmgcvit.models.arch import ARCHS
from mmgcvit.task import CLASSIFICATION, DETECTION, SEGMENTATION, require_task

ROOT = Path(__file__).parents[2]
FILES = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.glob('configs/*/*.py'))
    if path.parent.name not in ('_base_', 'comparison')  # tests/analysis/test_comparison.py
]
# a size in the names of configs → arch, from small to large
SIZES = {
    **{'xxt': 'xxtiny', 'xt': 'xtiny', 't': 'tiny', 't2': 'tiny2'},
    **{'s': 'small', 's2': 'small2', 'b': 'base', 'l': 'large'},
}


@functools.cache
def assigned(path):
    """What a config file itself assigns at its top level, as syntax trees by name."""
    tree = ast.parse((ROOT / path).read_text())
    statements = (node for node in tree.body if isinstance(node, ast.Assign))
    return {target.id: node.value for node in statements for target in node.targets}


def is_alias(path):
    return assigned(path).keys() <= {'_base_', '_deprecation_'} and isinstance(
        assigned(path)['_base_'], ast.Constant
    )


def is_head(path):
    """Whether a config replaces the backbone of another library's config, or inherits from one."""
    base = assigned(path)['_base_']
    if isinstance(base, ast.Constant):
        return '::' not in base.value and is_head(path.parent / base.value)
    return any(element.value.endswith('_base_/gcvit_t.py') for element in base.elts)


ALIASES = [path for path in FILES if is_alias(path)]
CONFIGS = [path for path in FILES if not is_alias(path)]
# test_heads.py and test_segmentation_heads.py run these with a very small backbone
HEADS = [path for path in CONFIGS if is_head(path)]

# A config that does not mention the model has the network of its base. Classifiers of all sizes
# have the same pooling and head, so the smallest one is enough.
NETWORKS = [
    path
    for path in CONFIGS
    if 'model' in assigned(path)
    and path not in HEADS
    and (path.parent.name != 'classification' or path.stem in ('gcvit_xxt', 'gcvit_shapes'))
    # test_variants.py trains small networks of these
    and path.parent.name != 'ablations'
]


@functools.cache
def published(path):
    """A config as it is in its file; not to be changed."""
    return load_config(ROOT / path)


def method_and_size(path):
    """Return ('mask-rcnn', 's') for mask-rcnn_gcvit-s_fpn_3x_coco.py; a name may have no size.

    The method of classifiers is 'gcvit'.
    """
    sizes = '|'.join(SIZES)
    match = re.fullmatch(rf'(.+)_gcvit-({sizes})(?:-in21k)?_.+', path.stem)
    match = match or re.fullmatch(rf'(gcvit)_({sizes})(?:_.+)?', path.stem)
    return match.groups() if match else (path.stem, None)


def is_quick(path):
    """Whether a network runs in the quick tier: each method's smallest size, and the shapes."""
    method, size = method_and_size(path)
    sizes = [s for m, s in map(method_and_size, NETWORKS) if m == method and s]
    return path.stem.endswith('_shapes') or size == min(sizes, key=[*SIZES].index, default='')


@functools.cache
def backbone_of(path):
    """The backbone of a config, without values."""
    with torch.device('meta'):
        return MODELS.build(dict(published(path).model.backbone))


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(path, id=str(path), marks=() if is_quick(path) else pytest.mark.slow)
        for path in NETWORKS
    ],
)
def built(request):
    """A config and its model."""
    cfg = copy.deepcopy(published(request.param))
    init_default_scope(cfg.default_scope)
    # pretrained weights are tested elsewhere
    weights, cfg.model.backbone.init_cfg = cfg.model.backbone.get('init_cfg'), None
    arch = cfg.model.backbone.arch
    if not isinstance(arch, dict) and arch != 'xxtiny':
        # windows of 24 would be mostly padding here, and take ten times as long
        cfg.model.backbone.window_size = 7
    few_proposals(cfg.model)
    # one process, on the CPU
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    cfg.model.backbone.init_cfg = weights
    return cfg, model


def few_proposals(model):
    """Limit a two-stage detector to 16 boxes per image: its heads would take most of the time."""
    train, test = (model.get(name) or {} for name in ('train_cfg', 'test_cfg'))
    rcnn = train.get('rcnn', [])
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.num = 16
    for settings in (train.get('rpn_proposal'), test.get('rpn')):
        if settings is not None:
            settings.max_per_img = 16


def test_there_is_a_config_of_every_size():
    names = {path.stem for path in CONFIGS}
    for size in SIZES:
        assert {
            f'mask-rcnn_gcvit-{size}_fpn_3x_coco',
            f'cascade-mask-rcnn_gcvit-{size}_fpn_3x_coco',
            f'upernet_gcvit-{size}_160k_ade20k-512x512',
            f'gcvit_{size}',
        } < names


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_begins_with_launch_hardware_source_and_result(path):
    header = (ROOT / path).read_text().split('_base_')[0]
    for part in ('# Launch:', '# Hardware:', '# Source:', '# Result:', 'paper:', 'ours:'):
        assert part in header, part
    assert str(path) in header or 'tools/quickstart.sh' in header
    weights = (published(path).model.backbone.get('init_cfg') or {}).get('checkpoint', '')
    assert ('# License:  CC BY-NC-SA 4.0' in header) == ('nvidia' in weights)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_arch_weights_and_drop_path_are_of_the_size_in_the_name(path):
    method, size = method_and_size(path)
    if size is None:
        assert 'gcvit-' not in path.stem
        return
    arch, backbone = SIZES[size], published(path).model.backbone
    assert backbone.arch == arch
    assert f'GC ViT-{size.upper()} ' in (ROOT / path).read_text().splitlines()[0]
    if method == 'gcvit':  # classifiers, see test_classification_configs.py
        return
    # the weights of ImageNet-21K were fine-tuned with the drop path rate of their classifier
    in_21k = '-in21k_' in path.stem
    weights = f'gcvit_21k_{arch}_384.pth.tar' if in_21k else f'gcvit_1k_{arch}.pth.tar'
    assert backbone.init_cfg.checkpoint.rpartition('/')[2] == weights
    assert backbone.window_size == 24
    assert backbone.get('drop_path_rate') == (0.1 if in_21k else None)
    rates = [b.drop_path.drop_rate for stage in backbone_of(path).stages for b in stage.blocks]
    step = (0.1 if in_21k else ARCHS[arch].drop_path_rate) / (sum(ARCHS[arch].depths) - 1)
    assert rates == pytest.approx([i * step for i in range(len(rates))])


def taking_parts(model):
    """Return the parts of a model's config that take the feature maps of the backbone."""
    if 'in_channels' in model.get('neck', {}):
        return [model.neck]
    return [part for part in model.values() if isinstance(part, dict) and 'in_channels' in part]


# Swin has no out_channels
@pytest.mark.parametrize('path', [path for path in CONFIGS if 'gcvit' in path.stem], ids=str)
def test_whatever_takes_the_feature_maps_has_their_channels(path):
    model, channels = published(path).model, backbone_of(path).out_channels
    parts = taking_parts(model)
    assert parts
    for part in parts:
        if isinstance(part.in_channels, int):
            assert part.in_channels == channels[part.get('in_index', -1)]
        else:
            indices = part.get('in_index', range(len(channels)))
            assert list(part.in_channels) == [channels[i] for i in indices]


def test_names_that_users_have_are_still_there():
    names = {f'configs/detection/cascade_gcvit_{size}.py' for size in SIZES}
    names |= {f'configs/detection/mask_rcnn_gcvit_{size}.py' for size in SIZES}
    names |= {f'configs/segmentation/upernet_gcvit_{size}.py' for size in SIZES}
    assert {*map(str, ALIASES)} == {*names, 'configs/detection/cascade_gcvit_l_fsdp.py'}


@pytest.mark.filterwarnings('ignore:The config file:DeprecationWarning')
@pytest.mark.parametrize('path', ALIASES, ids=str)
def test_an_alias_is_the_config_that_it_names(path):
    target = path.parent / assigned(path)['_base_'].value
    method = {'mask_rcnn': 'mask-rcnn', 'cascade': 'cascade-mask-rcnn', 'upernet': 'upernet'}
    old, size = re.fullmatch(r'(.+)_gcvit_([a-z0-9]+?)(?:_fsdp)?', path.stem).groups()
    assert method_and_size(target) == (method[old], size)
    assert ('fsdp' in path.stem) == ('fsdp' in target.stem)
    settings, expected = load_config(ROOT / path).to_dict(), published(target).to_dict()
    assert settings.pop('work_dir') == f'work_dirs/{path.stem}'
    expected.pop('work_dir')
    assert settings == expected
    assert target.name in (ROOT / path).read_text().splitlines()[0]
    # the short names of the published launch command stay
    if old != 'cascade':
        (expected_name,) = assigned(path)['_deprecation_'].keywords
        assert (expected_name.arg, expected_name.value.value) == ('expected', str(target))
    else:
        assert '_deprecation_' not in assigned(path)


def test_the_metafile_knows_the_aliases():
    """tools/get_flops.py prints the paper's numbers for them too."""
    models = load(ROOT / 'metafile.yml')['Models']
    named = {name: model['Config'] for model in models for name in model.get('Alias', [])}
    networks = [path for path in ALIASES if not path.stem.endswith('_fsdp')]
    assert named == {
        path.stem: str(path.parent / assigned(path)['_base_'].value) for path in networks
    }


def test_a_users_config_on_an_old_name_loads_with_a_warning(tmp_path):
    old = ROOT / 'configs/detection/mask_rcnn_gcvit_s.py'
    new = 'configs/detection/mask-rcnn_gcvit-s_fpn_3x_coco.py'
    (tmp_path / 'mine.py').write_text(
        f"_base_ = '{old}'\nmodel = dict(backbone=dict(with_cp=True))\n"
    )
    with pytest.warns(DeprecationWarning, match=re.escape(f'Please use {new} instead')):
        mine = Config.fromfile(tmp_path / 'mine.py')
    assert mine.model.backbone.pop('with_cp') is True
    assert mine.model == published(Path(new)).model


def test_model_runs_forward_and_backward(built):
    cfg, model = built
    runs = {DETECTION: run_detector, SEGMENTATION: run_segmentor, CLASSIFICATION: run_classifier}
    task = require_task(cfg)
    losses = runs[task](model)
    assert len(losses) >= (2 if task is DETECTION or 'auxiliary_head' in cfg.model else 1)
    total = sum(sum(value) if isinstance(value, list) else value for value in losses.values())
    assert torch.isfinite(total) and total > 0
    total.backward()
    without = [n for n, p in model.backbone.named_parameters() if p.grad is None]
    assert without == []
    model.zero_grad(set_to_none=True)


def run_detector(model):
    """Compare its strides, detect in an empty image and return the losses of one rectangle."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    extractors = [module for module in model.modules() if hasattr(module, 'featmap_strides')]
    if hasattr(model, 'roi_head'):
        assert len(extractors) >= 1 + model.with_mask
    for extractor in extractors:
        assert_same_strides(extractor.featmap_strides, model)
    priors = [m.prior_generator for m in model.modules() if hasattr(m, 'prior_generator')]
    for prior in priors:
        assert_same_strides([max(stride) for stride in prior.strides], model)
    assert extractors or priors
    shape = (64, 96)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape,
            ori_shape=shape,
            pad_shape=shape,
            batch_input_shape=shape,
            scale_factor=(1.0, 1.0),
        )
    )
    image = torch.rand(1, 3, *shape)
    model.eval()
    with torch.no_grad():
        (found,) = model.predict(image, [sample])
    assert found.pred_instances.bboxes.shape[1] == 4
    masks = torch.zeros(1, *shape, dtype=torch.uint8)
    masks[:, 8:48, 10:70] = 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 8.0, 70.0, 48.0]]),
        labels=torch.tensor([1]),
        masks=BitmapMasks(masks.numpy(), *shape),
    )
    model.train()
    return {k: v for k, v in model.loss(image, [sample]).items() if 'loss' in k}


def assert_same_strides(strides, model):
    """Compare strides of pyramid levels with the backbone's, as far as both go."""
    pairs = list(zip(strides, model.backbone.strides, strict=False))
    assert len(pairs) >= 3
    assert all(stride == expected for stride, expected in pairs)


def run_segmentor(model):
    """Label an image and return the losses of another."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shape = (64, 96)
    samples = [
        SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        for _ in range(2)
    ]
    images = torch.rand(2, 3, *shape)
    model.eval()
    with torch.no_grad():
        found = model.predict(images[:1], samples[:1])
    assert found[0].pred_sem_seg.shape == shape
    assert found[0].seg_logits.data.shape[0] == model.decode_head.num_classes
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, *shape)))
    model.train()
    return {k: v for k, v in model.loss(images, samples).items() if 'loss' in k}


def run_classifier(model):
    """Classify an image and return the loss of two."""
    from mmpretrain.structures import DataSample

    images = torch.rand(2, 3, 64, 96)
    model.eval()
    with torch.no_grad():
        (found,) = model.predict(images[:1])
    assert found.pred_score.shape == (model.head.num_classes,)
    model.train()
    return model.loss(images, [DataSample().set_gt_label(label) for label in (0, 2)])


def test_norms_and_bias_tables_are_not_decayed(built):
    cfg, model = built
    settings = dict(cfg.optim_wrapper, type='OptimWrapper')
    for name in ('loss_scale', 'use_fsdp'):  # of mixed precision
        settings.pop(name, None)
    decay = {}
    for group in build_optim_wrapper(model, settings).optimizer.param_groups:
        decay |= {id(p): group['weight_decay'] for p in group['params']}
    without_biases = cfg.optim_wrapper.paramwise_cfg.get('bias_decay_mult') == 0
    for name, parameter in model.backbone.named_parameters():
        plain = 'norm' in name or name.endswith('relative_position_bias_table')
        # in mmpretrain's recipe for Swin, biases and layer scale are not decayed either
        plain = plain or (without_biases and parameter.dim() == 1)
        assert (decay[id(parameter)] == 0) == plain, name
