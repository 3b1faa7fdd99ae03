"""Features that FSDP excludes. tests/tools/test_fsdp_launching.py trains with it."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmgcvit import GCViT
from mmgcvit.engine import load_config, wrap_blocks
from mmgcvit.engine.adaptations import adapt_fsdp
from mmgcvit.engine.device import Machine
from mmgcvit.errors import UserError
from mmgcvit.models.gcvit import Block


def config(**settings):
    cfg = load_config('configs/detection/cascade_gcvit_l_fsdp.py')
    cfg.launcher = 'pytorch'
    cfg.merge_from_dict(settings)
    return cfg


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'launcher': 'none'}, 'start them with tools/dist_train.sh'),
        ({'custom_hooks': [dict(type='EMAHook')]}, 'FSDPStrategy and EMAHook cannot be combined'),
        (
            {'optim_wrapper.constructor': 'mmgcvit.LayerDecayOptimWrapperConstructor'},
            'FSDPStrategy and layer-wise learning-rate decay cannot be combined',
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        adapt_fsdp(config(**settings), Machine('cuda', 2))


def test_a_gpu_is_left_to_the_strategy_and_a_cpu_is_named(monkeypatch):
    monkeypatch.setattr('mmgcvit.engine.adaptations.shards_on_cpu', lambda: True)
    cuda, cpu = config(), config()
    adapt_fsdp(cuda, Machine('cuda', 2))
    adapt_fsdp(cpu, Machine('cpu', 2))
    assert 'device_id' not in cuda.strategy.model_wrapper
    assert torch.device(cpu.strategy.model_wrapper.device_id) == torch.device('cpu')


def test_a_cpu_is_refused_if_pytorch_does_not_support_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, 'Stream', type('Stream', (), {}))  # as in torch 2.1
    adapt_fsdp(config(), Machine('cuda', 2))
    with pytest.raises(UserError, match=r'needs a GPU with PyTorch 2.*: train on GPUs'):
        adapt_fsdp(config(), Machine('cpu', 2))


def test_other_strategies_are_left_alone():
    cfg = Config(dict(strategy=dict(type='DDPStrategy')))
    adapt_fsdp(cfg, Machine('cpu'))
    assert cfg.strategy == dict(type='DDPStrategy')


def test_each_block_is_a_unit_and_nothing_else(nano):
    model = nn.ModuleDict({'backbone': GCViT(nano), 'head': nn.Linear(2, 2)})
    units = [m for m in model.modules() if wrap_blocks(m, False, 0)]
    assert [type(m) for m in units] == [Block] * sum(nano['depths'])
