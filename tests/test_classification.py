"""Classifiers: published weights in every layout, and from classification to detection."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from nano import NANO
from safetensors.torch import save_file

from mmgcvit import GCViT, reference
from mmgcvit.datasets import draw_shape_classes, draw_shapes
from mmgcvit.engine import adapt_test, build_runner, load_config
from mmgcvit.ops import resize_bias_table
from mmgcvit.weights.layouts import to_nvidia, to_timm

ROOT = Path(__file__).parents[1]
IMAGENET = ROOT / 'configs/classification/gcvit_xxt.py'
SHAPES = ROOT / 'configs/classification/gcvit_shapes.py'
DETECTOR = ROOT / 'configs/detection/mask_rcnn_gcvit_shapes.py'
TABLE = 'relative_position_bias_table'
_numbers = itertools.count()


@pytest.fixture(autouse=True, scope='module')
def mmengines_loaders_afterwards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
        yield


def published_classifier(num_classes, arch=NANO):
    """Random weights of a published classifier, under this package's names."""
    state = GCViT(arch, image_size=224).state_dict()
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    head = {
        'head.fc.weight': torch.randn(num_classes, 64),
        'head.fc.bias': torch.randn(num_classes),
    }
    return {**state, **head}


def write_nvidia(state, path):
    # with index buffers, and beside the state of a training
    tensors = {f'module.{name}': tensor for name, tensor in to_nvidia(state).items()}
    tensors['module.levels.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49).long()
    torch.save({'state_dict': tensors, 'epoch': 310, 'arch': 'gcvit', 'optimizer': {}}, path)


def write_timm(state, path):
    tensors = {name: tensor.contiguous() for name, tensor in to_timm(state).items()}
    (save_file if path.suffix == '.safetensors' else torch.save)(tensors, path)


def expected_logits(state, images):
    """The reference network, average pooling and a linear layer."""
    weights = to_nvidia(state)
    weights['norm3.weight'], weights['norm3.bias'] = weights['norm.weight'], weights['norm.bias']
    for i in range(3):  # only the last feature map is used
        weights[f'norm{i}.weight'] = weights[f'norm{i}.bias'] = torch.zeros(8 * 2**i)
    maps = reference.gcvit(weights, images, NANO['num_heads'], (7, 7, 14, 7), (3, 2, 0, 0))
    return torch.nn.functional.linear(
        maps[-1].mean((2, 3)), weights['head.weight'], weights['head.bias']
    )


@pytest.mark.parametrize(
    ('name', 'write'),
    [
        ('gcvit_1k_nano.pth.tar', write_nvidia),
        ('timm.bin', write_timm),
        ('model.safetensors', write_timm),
    ],
)
def test_a_published_file_is_tested_with_its_head(tmp_path, name, write):
    state = published_classifier(1000)
    write(state, tmp_path / name)
    cfg = load_config(IMAGENET, tmp_path / 'work')
    cfg.model.backbone.arch, cfg.model.head.in_channels = NANO, 64
    cfg.load_from = str(tmp_path / name)
    cfg.experiment_name = f'published_{next(_numbers)}'
    runner = build_runner(cfg, adapt_test)
    runner.load_or_resume()  # as runner.test() does
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        found = runner.model.eval()(images, mode='tensor')
        expected = expected_logits(state, images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.1


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    draw_shape_classes(folder / 'classes', num_train=6, num_val=3, progress=False)
    draw_shapes(folder / 'shapes', num_train=1, num_val=1, progress=False)
    return folder


def classifier_config(data, work_dir, **options):
    """The config of the drawn shapes, for two small iterations."""
    cfg = load_config(SHAPES, work_dir)
    root = str(data / 'classes')
    cfg.merge_from_dict(
        {
            **{f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')},
            **{f'{s}_dataloader.num_workers': 0 for s in ('train', 'val', 'test')},
            **{f'{s}_dataloader.persistent_workers': False for s in ('train', 'val', 'test')},
            'train_dataloader.batch_size': 3,
            'train_cfg': dict(by_epoch=True, max_epochs=1, val_interval=1),
            'default_hooks.checkpoint.interval': 1,
            'param_scheduler': [],
            'experiment_name': f'classifier_{next(_numbers)}',
            **options,
        }
    )
    return cfg


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """The checkpoint of a classifier, and the tensors in it."""
    folder = tmp_path_factory.mktemp('classifier')
    runner = build_runner(classifier_config(data, folder))
    runner.train()
    path = folder / 'epoch_1.pth'
    return path, torch.load(path, weights_only=False)['state_dict']


def test_a_classifier_trains_on_the_drawn_classes(trained, data):
    path, state = trained
    assert (path.parent / 'best_accuracy_top1_epoch_1.pth').exists()
    untrained = build_runner(classifier_config(data, path.parent / 'again'))
    untrained.model.init_weights()
    changed = [n for n, p in untrained.model.named_parameters() if not torch.equal(p, state[n])]
    assert len(changed) > 0.95 * len(list(untrained.model.parameters()))


def resized(state, model):
    """The tables of a state dict, resized to the windows of a backbone."""
    tables = {n: p for n, p in model.named_parameters() if n.endswith(TABLE)}
    assert tables
    return {n: resize_bias_table(state[n], len(p)) for n, p in tables.items()}


@pytest.mark.parametrize('settings', [{}, {'prefix': 'backbone'}])
def test_a_detector_begins_with_what_a_classifier_has_learned(trained, data, tmp_path, settings):
    path, state = trained
    learned = {n.removeprefix('backbone.'): t for n, t in state.items() if 'backbone.' in n}
    cfg = load_config(DETECTOR, tmp_path)
    root = f'{data}/shapes/coco/'
    cfg.merge_from_dict(
        {
            'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=str(path), **settings),
            **{f'{s}_dataloader.dataset.data_root': root for s in ('train', 'val', 'test')},
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_epochs': 1,
            'experiment_name': f'detector_{next(_numbers)}',
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
        }
    )
    runner = build_runner(cfg)
    runner.model.init_weights()
    backbone = runner.model.backbone
    expected = {**learned, **resized(learned, backbone)}
    different = [
        n for n, p in backbone.named_parameters() if not torch.equal(p, expected.get(n, p))
    ]
    assert different == []
    # the classifier has no norms of the first three feature maps
    assert {n for n, _ in backbone.named_parameters()} - set(expected) == {
        f'norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')
    }
    if not settings:
        runner.train()
        after = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
        weight = 'stages.0.blocks.0.attn.qkv.weight'
        assert torch.allclose(after[f'backbone.{weight}'], learned[weight], atol=1e-3)
        assert not torch.equal(after[f'backbone.{weight}'], learned[weight])


def test_fine_tuning_begins_with_a_published_file_and_a_new_head(data, tmp_path, log):
    arch = dict(load_config(SHAPES).model.backbone.arch)
    state = GCViT(arch, image_size=224).state_dict()
    head = {'head.fc.weight': torch.randn(1000, 256), 'head.fc.bias': torch.randn(1000)}
    write_nvidia({**state, **head}, tmp_path / 'gcvit.pth.tar')
    options = dict(load_from=str(tmp_path / 'gcvit.pth.tar'))
    runner = build_runner(classifier_config(data, tmp_path, **options))
    # as in runner.train()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    initial = runner.model.head.fc.weight.clone()
    runner.load_or_resume()
    backbone = runner.model.backbone
    assert [stage.window_size for stage in backbone.stages] == [2, 2, 4, 2]
    expected = {**state, **resized(state, backbone)}
    assert all(torch.equal(p, expected[n]) for n, p in backbone.named_parameters())
    assert torch.equal(runner.model.head.fc.weight, initial)
    (line,) = [message for message in log if ': loaded ' in message]
    assert '2 kept at initialization (2 with mismatched shape): head.fc.weight' in line


@pytest.mark.nightly
def test_mmpretrains_own_tool_trains_it_without_custom_imports(data, tmp_path):
    import mmpretrain

    tool = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    options = {f'{s}_dataloader.dataset.data_root': data / 'classes' for s in ('train', 'val')}
    options |= {'train_dataloader.batch_size': 3, 'train_cfg.max_epochs': 1}
    subprocess.run(
        [
            *(sys.executable, tool, SHAPES, '--work-dir', tmp_path, '--cfg-options'),
            *(f'{name}={value}' for name, value in options.items()),
            *('train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'),
        ],
        check=True,
        cwd=tmp_path,
    )
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert state['backbone.stages.2.blocks.0.attn.relative_position_bias_table'].shape == (49, 4)
    assert (tmp_path / 'best_accuracy_top1_epoch_1.pth').exists()
