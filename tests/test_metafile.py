"""metafile.yml and model-index.yml: what OpenMMLab's tools read, and the configs they describe."""

from pathlib import Path

import pytest
import torch
from mmengine.fileio import load
from mmengine.infer import BaseInferencer
from modelindex.load_model_index import load as load_model_index

from mmgcvit import GCViT
from mmgcvit.analysis import counted_shape
from mmgcvit.engine import load_config
from mmgcvit.models import ARCHS
from mmgcvit.task import CLASSIFICATION, SEGMENTATION, require_task

ROOT = Path(__file__).parents[1]
MODELS = {model['Name']: model for model in load(ROOT / 'metafile.yml')['Models']}
SIZES = dict(zip(('xxt', 'xt', 't', 't2', 's', 's2', 'b', 'l'), ARCHS, strict=True))
BACKBONES = {arch: MODELS[f'gcvit_{size}'] for size, arch in SIZES.items()}
SOURCES = ('paper', 'model card')
METRICS = {
    'Image Classification': ['Top 1 Accuracy'],
    'Object Detection': ['box AP', 'box AP50', 'box AP75'],
    'Instance Segmentation': ['mask AP', 'mask AP50', 'mask AP75'],
    'Semantic Segmentation': ['mIoU'],
}
# in the headers of the configs
SHORT = {'Top 1 Accuracy': 'top-1', 'box AP': 'box AP', 'mask AP': 'mask AP', 'mIoU': 'mIoU'}
TASKS = {
    'classification': ['Image Classification'],
    'detection': ['Object Detection', 'Instance Segmentation'],
    'segmentation': ['Semantic Segmentation'],
}
NETWORKS = [name for name, model in MODELS.items() if 'ablations' not in model['Config']]


@pytest.fixture(scope='module')
def index():
    """model-index.yml as read by mim, mmpretrain and others."""
    return load_model_index(str(ROOT / 'model-index.yml'))


def test_openmmlab_reads_the_model_index(index):
    assert not index.check(silent=True)
    assert [model.name for model in index.models] == list(MODELS)
    # the inferencers of mmdet and mmseg read it like this
    inferencers = BaseInferencer._get_models_from_metafile(str(ROOT))
    assert [model['Name'] for model in inferencers] == list(MODELS)
    for model in index.models:
        data = model.full_model.metadata.data
        assert {'Architecture', 'Training Data', 'Training Techniques', 'Batch Size'} < set(data)
        assert 'Epochs' in data or 'Iterations' in data
        network = 'Swin Transformer' if model.name.startswith('swin') else 'GC ViT'
        assert data['Architecture'][0] == network and isinstance(data['Parameters'], int)


def test_nobody_gets_the_impression_that_we_trained(index):
    for model in index.models:
        data = model.full_model.metadata.data
        assert data['Source of Results'].startswith('not trained by this project')
        assert data.get('Training Resources', '(paper)').endswith('(paper)')
        assert ('Training Resources' in data) == ('Paper Training Time (h)' in data)
        for result in model.results or []:
            for metric in result.metrics:
                assert metric.endswith(tuple(f' ({source})' for source in SOURCES))
        # there are no weights but NVIDIA's
        assert (model.weights is None) == ('Converted From' not in model.data)
        if model.weights:
            assert model.weights.startswith('https://huggingface.co/nvidia/GCViT/')
            assert model.data['Converted From']['Weights'] == model.weights
            assert data['Weights License'] == 'CC BY-NC-SA 4.0'


def test_metafile_lists_every_size_and_every_config():
    names = [f'classification/gcvit_{size}' for size in SIZES]
    names.insert(names.index('classification/gcvit_t') + 1, 'classification/gcvit_t_ema')
    names += ['classification/gcvit_l_384', 'classification/gcvit_l_512']
    for method in (
        'detection/mask-rcnn_gcvit-{}_fpn_3x_coco',
        'detection/cascade-mask-rcnn_gcvit-{}_fpn_3x_coco',
        'segmentation/upernet_gcvit-{}_160k_ade20k-512x512',
    ):
        names += [method.format(size) for size in SIZES]
    expected = [f'configs/{name}.py' for name in names]
    configs = [model['Config'] for model in MODELS.values()]
    # ablations follow
    assert configs[: len(expected)] == expected
    assert all(config.startswith('configs/ablations/') for config in configs[len(expected) :])
    assert all(name == Path(model['Config']).stem for name, model in MODELS.items())


@pytest.mark.parametrize('arch', BACKBONES)
def test_parameters_of_backbones_match_the_metafile(arch):
    with torch.device('meta'):
        model = GCViT(arch, window_size=(7, 7, 14, 7))
    params = sum(p.numel() for p in model.parameters())
    assert params == BACKBONES[arch]['Metadata']['Backbone Parameters']


@pytest.mark.parametrize('name', NETWORKS)
def test_metafile_matches_the_config(index, name):
    model = MODELS[name]
    cfg = load_config(ROOT / model['Config'])
    backbone, task = cfg.model.backbone, require_task(cfg)
    assert backbone.arch == model['Metadata']['Backbone']
    if task is CLASSIFICATION:
        size = name.removeprefix('gcvit_l_')
        size = int(size) if size.isdigit() else 224
        assert counted_shape(cfg) == (size, size)
    else:
        assert backbone.init_cfg.checkpoint == BACKBONES[backbone.arch]['Weights']
        assert counted_shape(cfg) == task.counted_shape
    (full,) = (other.full_model for other in index.models if other.name == name)
    data = full.metadata.data
    assert data['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    length = ('Iterations', 'max_iters') if task is SEGMENTATION else ('Epochs', 'max_epochs')
    assert data[length[0]] == cfg.train_cfg[length[1]]
    assert cfg.optim_wrapper.optimizer.type in data['Training Techniques']
    amp = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert amp == ('Mixed Precision' in data['Training Techniques'])


@pytest.mark.parametrize('name', NETWORKS)
def test_results_match_the_config(name):
    """Every metric is named like in OpenMMLab's metafiles, and the header of the config has it."""
    model = MODELS[name]
    header = (ROOT / model['Config']).read_text().split('_base_')[0]
    line = next(line for line in header.splitlines() if line.startswith('# Result:'))
    results = model.get('Results', [])
    tasks = TASKS[Path(model['Config']).parent.name]
    assert [result['Task'] for result in results] == (tasks if results else [])
    metrics = {}
    for result in results:
        names = [metric.rpartition(' (')[0] for metric in result['Metrics']]
        assert list(dict.fromkeys(names)) == METRICS[result['Task']]
        metrics |= result['Metrics']
    for source in SOURCES:
        reported = ', '.join(
            f'{short} {metrics[metric]}'
            for name, short in SHORT.items()
            if (metric := f'{name} ({source})') in metrics
        )
        if reported or source == 'paper':
            assert f'{source}: {reported or "not reported"}' in line
    assert line.endswith('ours: not trained')
