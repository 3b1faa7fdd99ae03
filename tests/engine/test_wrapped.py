"""Datasets and models inside wrappers."""

from types import SimpleNamespace

from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmgcvit.engine.wrappers import dataset_configs, datasets_of, unwrapped


def test_every_dataset_config_has_its_place():
    first, second, third = dict(type='A'), dict(type='B', dataset='a name'), dict(type='C')
    repeated = dict(type='Repeat', times=2, dataset=dict(type='Balanced', dataset=second))
    joined = dict(type='Concat', datasets=[first, repeated, third])
    assert list(dataset_configs(joined, 'train')) == [
        ('train.datasets.0', first),
        ('train.datasets.1.dataset.dataset', second),
        ('train.datasets.2', third),
    ]
    assert list(dataset_configs(None, 'val')) == list(dataset_configs([1, 2], 'val')) == []


def test_datasets_come_before_their_wrappers():
    inner = [SimpleNamespace(name=name) for name in 'ab']
    repeated = SimpleNamespace(dataset=inner[1])
    joined = SimpleNamespace(datasets=[inner[0], repeated])
    assert list(datasets_of(joined)) == [inner[0], inner[1], repeated, joined]


def test_model_within_several_wrappers():
    model = nn.Linear(1, 1)
    wrapped = model
    for _ in range(2):
        wrapper = MMDistributedDataParallel.__new__(MMDistributedDataParallel)
        nn.Module.__init__(wrapper)
        wrapper.module = wrapped
        wrapped = wrapper
    assert unwrapped(wrapped) is model and unwrapped(model) is model
