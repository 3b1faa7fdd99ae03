"""Models of other frameworks with the backbone: the examples of the docs and other models."""

import abc
import collections
import importlib
import os
import re
import subprocess
import sys
import sysconfig
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from torch import nn

from mmgcvit import GCViT
from mmgcvit.errors import UserError
from mmgcvit.models import ARCHS
from mmgcvit.weights import sources
from mmgcvit.weights.layouts import to_nvidia, to_timm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'integrations.md').read_text()
EXAMPLES = dict(re.findall(r'^## (.+?)\n.*?```python\n(.*?)```', PAGE, re.DOTALL | re.MULTILINE))
PACKAGES = {'Hugging Face Hub': 'huggingface_hub', 'Detectron2': 'torch'}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Weights of the smallest size in the layouts of timm and NVIDIA, with one norm."""
    torch.manual_seed(2)
    state = GCViT('xxtiny', window_size=7, out_indices=(3,)).state_dict()
    folder = tmp_path_factory.mktemp('published')
    torch.save(to_timm(state), folder / 'timm.pth')
    torch.save({'state_dict': to_nvidia(state)}, folder / 'nvidia.pth.tar')
    return folder, state


@pytest.fixture
def downloads(published, monkeypatch):
    """Serves these weights instead of those that are published. Returns the requested URLs."""
    requested = []
    for scheme, name in (('timm', 'timm.pth'), ('https', 'nvidia.pth.tar')):

        def fetch(url, path=published[0] / name):
            requested.append(url)
            return path

        monkeypatch.setitem(sources.SCHEMES, scheme, fetch)
    return requested


@pytest.mark.parametrize('framework', EXAMPLES)
def test_example(framework, downloads, tmp_path, monkeypatch):
    """With the smallest size."""
    pytest.importorskip(PACKAGES.get(framework, framework))
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r'(?<!\w)tiny|(?<=_)tiny', 'xxtiny', EXAMPLES[framework]), run := {})
    assert len(downloads) == (framework != 'Detectron2')
    check = globals()[f'of_{re.sub("[^a-z0-9]+", "_", framework.lower())}']
    check(run)


def of_torchvision(run):
    assert set(run['losses']) == {
        'loss_classifier',
        'loss_box_reg',
        'loss_mask',
        'loss_objectness',
        'loss_rpn_box_reg',
    }
    assert all(p.grad is not None for p in run['backbone'].parameters())
    assert set(run['prediction']) == {'boxes', 'labels', 'scores', 'masks'}


def of_timm(run):
    assert [tuple(x.shape[1:]) for x in run['maps']] == [(128, 25, 40), (256, 13, 20), (512, 7, 10)]
    assert run['map_of_stage_3'].shape == (1, 256, 13, 20)
    assert run['model'].out_indices == (1, 2, 3)


def of_segmentation_models_pytorch(run):
    assert run['logits'].shape == (1, 19, 192, 320)


def of_hugging_face_hub(run):
    assert run['model'].stages[0].window_size == 12
    assert len(run['maps']) == 4


def of_transformers(run):
    logits = run['model'](run['images']).logits
    assert logits.shape == (2, 19, 200, 320)
    assert type(run['model'].backbone).__name__ == 'GCViTBackbone'


def of_detectron2(run):
    assert run['backbone'].output_shape()['res5'].channels == 512
    assert run['maps']['res5'].shape == (1, 512, 7, 10)


def test_pretrained_timm_models_have_the_published_weights(published, downloads):
    timm = pytest.importorskip('timm')
    import mmgcvit.integrations.timm  # noqa: F401

    name = 'mmgcvit_xxtiny'
    options = dict(features_only=True, window_size=7, pretrained=True)
    model = timm.create_model(name, **options)
    assert downloads == [weights_in_metafile('xxtiny')]
    for key, tensor in published[1].items():
        assert torch.equal(model.state_dict()[key], tensor), key
    file = dict(file=str(published[0] / 'timm.pth'))
    gray = timm.create_model(name, in_chans=1, pretrained_cfg_overlay=file, **options)
    stem = published[1]['stem.conv.weight'].sum(1, keepdim=True)
    assert torch.allclose(gray.state_dict()['stem.conv.weight'], stem)
    assert len(downloads) == 1


def test_timm_loads_the_weights_that_a_config_names(published, hub):
    timm = pytest.importorskip('timm')
    import mmgcvit.integrations.timm  # noqa: F401

    (hub[0] / 'me/gcvit/main').mkdir(parents=True)
    torch.save(published[1], hub[0] / 'me/gcvit/main/own.pth')
    options = dict(features_only=True, window_size=7, pretrained=True)
    for overlay in (
        dict(state_dict=to_timm(published[1])),
        dict(hf_hub_id='me/gcvit', hf_hub_filename='own.pth'),
        dict(file=published[0] / 'timm.pth', hf_hub_id='me/absent'),
    ):
        model = timm.create_model('mmgcvit_xxtiny', pretrained_cfg_overlay=overlay, **options)
        for key, tensor in published[1].items():
            assert torch.equal(model.state_dict()[key], tensor), (key, overlay.keys())
    for wrong, words in ((dict(custom_load=True), 'custom_load'), (dict(url=None), 'no weights')):
        with pytest.raises(UserError, match=words):
            timm.create_model('mmgcvit_xxtiny', pretrained_cfg_overlay=wrong, **options)


@pytest.mark.parametrize(
    ('given', 'stages'), [((0, -1), (0, 3)), ([-3, -2], (1, 2)), (2, (2, 3)), ((1,), (1,))]
)
def test_timms_out_indices_count_from_the_end_too(given, stages):
    timm = pytest.importorskip('timm')
    import mmgcvit.integrations.timm  # noqa: F401

    model = timm.create_model('mmgcvit_xxtiny', features_only=True, out_indices=given)
    assert model.out_indices == stages
    assert model.feature_info.channels() == [64 * 2**i for i in stages]
    with pytest.raises(ValueError, match=r'out_indices=\(-5,\) is not allowed'):
        timm.create_model('mmgcvit_xxtiny', features_only=True, out_indices=(-5,))


def weights_in_metafile(arch):
    return next(
        model['Weights']
        for model in yaml.safe_load((ROOT / 'metafile.yml').read_text())['Models']
        if model['Metadata']['Backbone'] == arch and 'Weights License' in model['Metadata']
    )


def test_timm_lists_each_size_with_its_weights():
    timm = pytest.importorskip('timm')
    import mmgcvit.integrations.timm  # noqa: F401

    assert set(timm.list_models('mmgcvit_*', pretrained=True)) == {f'mmgcvit_{a}' for a in ARCHS}
    for arch in ARCHS:
        cfg = timm.models.get_pretrained_cfg(f'mmgcvit_{arch}')
        assert cfg.url == weights_in_metafile(arch)
        assert cfg.license == 'cc-by-nc-sa-4.0'


def test_what_timms_models_do_not_support():
    timm = pytest.importorskip('timm')
    import mmgcvit.integrations.timm  # noqa: F401

    with pytest.raises(UserError, match='mmgcvit_xxtiny has no classifier: set features_only=True'):
        timm.create_model('mmgcvit_xxtiny')
    with pytest.raises(UserError, match='output_stride=16 is not allowed'):
        timm.create_model('mmgcvit_xxtiny', features_only=True, output_stride=16)
    model = timm.create_model('mmgcvit_xxtiny', features_only=True, out_indices=(1, 3))
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(UserError, match=r'indices=\[2\] is not allowed: .* out_indices=\(1, 3\)'):
        model.forward_intermediates(images, [2])
    for wrong in (0, -1, 3, [-5]):
        with pytest.raises(UserError, match='is not allowed: '):
            model.forward_intermediates(images, wrong)
    found = model.forward_intermediates(images, [3, 1], intermediates_only=True)
    assert [each.shape[1] for each in found] == [128, 512]
    with pytest.raises(UserError, match="output_fmt='NLC' is not allowed"):
        model.forward_intermediates(images, output_fmt='NLC')
    (found,) = model.forward_intermediates(images, [-3], output_fmt='NHWC', intermediates_only=True)
    assert found.shape == (1, 4, 4, 128)


def test_torchvisions_one_stage_detectors_run(nano):
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    from mmgcvit.integrations.torchvision import GCViTWithFPN

    backbone = GCViTWithFPN(
        GCViT(nano, window_size=4, out_indices=(1, 2, 3)),
        out_channels=8,
        extra_blocks=LastLevelP6P7(8, 8),
        norm_layer=nn.BatchNorm2d,
    )
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.fpn.modules())
    sizes = tuple((size,) for size in (32, 64, 128, 256, 512))
    model = RetinaNet(
        backbone, 2, min_size=64, anchor_generator=AnchorGenerator(sizes, ((1.0,),) * 5)
    )
    (found,) = model.eval()([torch.rand(3, 60, 80)])
    assert set(found) == {'boxes', 'scores', 'labels'}


@pytest.mark.parametrize('name', ['FPN', 'Segformer', 'UPerNet', 'PSPNet', 'MAnet', 'Linknet'])
def test_decoders_of_segmentation_models_run(name):
    smp = pytest.importorskip('segmentation_models_pytorch')
    import mmgcvit.integrations.timm  # noqa: F401

    options = dict(encoder_weights=None, classes=3, window_size=4)
    model = getattr(smp, name)('tu-mmgcvit_xxtiny', **options)
    assert model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 3, 64, 96)


@pytest.fixture
def hf(nano):
    transformers = pytest.importorskip('transformers', '5.0')
    from mmgcvit.integrations.transformers import GCViTBackbone, GCViTConfig

    return transformers, GCViTBackbone, GCViTConfig(arch=nano, window_size=4)


def test_transformers_backbone_is_restored_from_a_folder(hf, tmp_path, monkeypatch):
    transformers, backbone, config = hf
    model = transformers.AutoBackbone.from_config(config).eval()
    model.save_pretrained(tmp_path)
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is type(config)
    # AutoBackbone asks the Hub whether the repository exists, even for a folder
    auto = sys.modules['transformers.models.auto.auto_factory']
    monkeypatch.setattr(auto.hf_api(), 'repo_exists', lambda name: True)
    images = torch.rand(1, 3, 40, 56)
    for load in (backbone.from_pretrained, transformers.AutoBackbone.from_pretrained):
        found = load(tmp_path)(images, output_hidden_states=True)
        assert all(map(torch.equal, found.feature_maps, model(images).feature_maps))
        assert found.hidden_states is found.feature_maps
    assert isinstance(model(images, return_dict=False), tuple)


@pytest.mark.parametrize(
    'argument', [dict(in_channels=4), dict(frozen_stages=2), dict(image_size=224)]
)
def test_transformers_config_rejects_arguments_that_it_would_ignore(hf, nano, argument):
    _, _, config = hf
    with pytest.raises(UserError, match=f'{next(iter(argument))} of GCViT is not allowed'):
        type(config)(arch=nano, **argument)


def test_transformers_initializes_what_a_file_lacks_as_gcvit_does(hf, nano, tmp_path):
    _, backbone, config = hf
    saved = {'backbone.norm3.weight': torch.full((64,), 2.0)}
    model = backbone.from_pretrained(None, config=config, state_dict=saved)
    state, plain = (m.state_dict() for m in (model.backbone, GCViT(nano, window_size=4)))
    assert torch.equal(state.pop('norm3.weight'), saved['backbone.norm3.weight'])
    for name, tensor in state.items():
        if tensor.std() == 0:
            assert torch.equal(tensor, plain[name]), name
        elif tensor.numel() > 100:
            assert float(tensor.std()) == pytest.approx(float(plain[name].std()), rel=0.3), name
    config.out_indices = [-1]
    backbone(config).save_pretrained(tmp_path)
    loaded = backbone.from_pretrained(tmp_path, out_features=['stage1', 'stage4'])
    assert loaded.channels == [8, 64]
    assert all(x.isfinite().all() for x in loaded(torch.rand(1, 3, 32, 32)).feature_maps)


def test_transformers_mask2former_trains(hf):
    transformers, _, config = hf
    sizes = dict.fromkeys(
        ['feature_size', 'mask_feature_size', 'hidden_dim', 'encoder_feedforward_dim'], 32
    )
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=config,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=32,
            num_queries=5,
            num_labels=3,
            **sizes,
        )
    )
    masks = torch.zeros(1, 64, 64)
    masks[:, 8:40, 8:40] = 1
    images = torch.rand(1, 3, 64, 64)
    model(images, mask_labels=[masks], class_labels=[torch.tensor([1])]).loss.backward()
    network = model.model.pixel_level_module.encoder.backbone
    assert all(p.grad is not None for p in network.parameters())


def test_detectron2s_classes_are_used_if_it_is_installed(nano):
    """With stand-ins that have the interface of its abstract base class."""

    class Backbone(nn.Module, metaclass=abc.ABCMeta):
        def __init__(self):
            super().__init__()

        @abc.abstractmethod
        def forward(self):
            pass

        @property
        def size_divisibility(self):
            return 0

    spec = collections.namedtuple('ShapeSpec', 'channels height width stride', defaults=[None] * 4)
    stand_ins = {
        'detectron2': {},
        'detectron2.layers': dict(ShapeSpec=spec),
        'detectron2.modeling': dict(Backbone=Backbone),
    }
    modules = {name: types.ModuleType(name) for name in stand_ins}
    for name, content in stand_ins.items():
        vars(modules[name]).update(content)
    with mock.patch.dict(sys.modules, modules):
        sys.modules.pop('mmgcvit.integrations.detectron2', None)
        adapter = importlib.import_module('mmgcvit.integrations.detectron2')
    model = adapter.Detectron2GCViT(nano, window_size=4, out_indices=(1, 3))
    assert isinstance(model, Backbone)
    assert model.size_divisibility == 0
    assert model.output_shape() == {
        'res3': spec(channels=16, stride=8),
        'res5': spec(channels=64, stride=32),
    }
    assert {k: x.shape[1] for k, x in model(torch.rand(1, 3, 32, 32)).items()} == {
        'res3': 16,
        'res5': 64,
    }


@pytest.mark.nightly
def test_frameworks_that_do_not_go_together_with_the_stack(tmp_path):
    """All tests of this folder, in an environment with all frameworks and without mmengine."""
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
    python = tmp_path / 'env' / 'bin' / 'python'
    # PyTorch and pytest are those of this environment
    (site,) = (tmp_path / 'env').glob('lib/python*/site-packages')
    (site / 'parent.pth').write_text(sysconfig.get_path('purelib'))
    requirements = ROOT / 'requirements' / 'integrations.txt'
    subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', requirements], check=True)
    paths = [str(ROOT), str(ROOT / 'tests')]
    done = subprocess.run(
        [python, '-m', 'pytest', '-q', '-rs', '-p', 'without_mmengine', 'tests/integrations'],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert 'skipped' not in done.stdout
