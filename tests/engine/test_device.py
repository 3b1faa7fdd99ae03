"""Which device is used. There is no GPU where this was written: mmengine's finding is replaced."""

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device, utils

from mmgcvit.engine import device as device_module
from mmgcvit.engine.adaptations import adapt_cpu, adapt_hooks
from mmgcvit.engine.device import Machine, choose_device
from mmgcvit.errors import UserError


@pytest.fixture
def operators(monkeypatch):
    """Let the operators fail on a GPU for a reason, or for None not, and note where they ran."""
    devices = []

    def settle(failure):
        def run(device, dtype):
            devices.append(device)
            return failure

        monkeypatch.setattr(device_module, 'operator_failure', run)
        return devices

    return settle


@pytest.mark.parametrize(
    ('found', 'failure', 'used'),
    [
        ('cuda', None, 'cuda'),
        ('cuda', 'no kernel', 'cpu'),
        ('mps', 'no kernel', 'cpu'),
        ('cpu', 'no kernel', 'cpu'),
        ('cpu', None, 'cpu'),
    ],
)
def test_a_gpu_is_used_if_mmcvs_operators_run_on_it(monkeypatch, operators, found, failure, used):
    monkeypatch.setattr(utils, 'DEVICE', found)
    operators(failure)
    assert choose_device() == used
    assert get_device() == used


@pytest.mark.parametrize('variable', ['LOCAL_RANK', 'SLURM_LOCALID'])
def test_each_process_tries_the_gpu_that_it_will_use(monkeypatch, operators, variable):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    devices = operators(None)
    monkeypatch.setattr(utils, 'DEVICE', 'cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    for rank in ('0', '3', '5'):  # the last one has none, which the launch reports
        monkeypatch.setenv(variable, rank)
        choose_device()
    assert devices == ['cuda:0', 'cuda:3', 'cuda:1']


def test_a_gpu_that_does_not_work_ends_in_one_line(monkeypatch):
    def fail(device, dtype):
        raise RuntimeError('CUDA error: out of memory\nmore')

    monkeypatch.setattr(utils, 'DEVICE', 'cuda')
    monkeypatch.setattr(device_module, 'operator_failure', fail)
    with pytest.raises(UserError, match=r'CUDA error: out of memory more\): check what runs on it'):
        choose_device()
    assert get_device() == 'cuda'  # it does not train on the CPU instead


@pytest.mark.parametrize('there_is_a_gpu', [False, True])
def test_one_line_says_that_and_why_the_cpu_is_used(monkeypatch, log, operators, there_is_a_gpu):
    operators('no kernel')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: there_is_a_gpu)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    adapt_cpu(Config(dict(model=dict(type='M'))), Machine('cpu'))
    assert len(log) == 1 and 'running on the CPU' in log[0]
    assert ('do not run on it (no kernel); ' in log[0]) == there_is_a_gpu


def test_what_a_cpu_lacks_is_replaced(log):
    model = dict(
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        heads=[dict(norm_cfg=dict(type='MMSyncBN')), dict(norm_cfg=dict(type='GN', num_groups=2))],
    )
    cfg = Config(
        dict(
            model=model,
            launcher='pytorch',
            sync_bn='torch',
            find_unused_parameters=True,
            custom_hooks=[dict(type='EMAHook')],
            val_cfg=dict(type='ValLoop', fp16=True),
            test_cfg=None,
        )
    )
    for adapt in (adapt_hooks, adapt_cpu):
        adapt(cfg, Machine('cpu', 2))
    assert cfg.model.norm_cfg == dict(type='BN', requires_grad=True)
    assert [head.norm_cfg.type for head in cfg.model.heads] == ['BN', 'GN']
    assert 'sync_bn' not in cfg
    assert cfg.val_cfg == dict(type='ValLoop')
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=True,
        device_ids=None,
    )
    assert [hook.type for hook in cfg.custom_hooks] == [
        'EMAHook',
        'mmgcvit.AverageBatchNorm',
        'mmgcvit.BadLossHook',
        'mmgcvit.UnusedParametersHook',
        'mmgcvit.StopOnSigtermHook',
        'mmgcvit.ResumedSettingsHook',
        'mmgcvit.CheckpointFitHook',
        'mmgcvit.ExactResumeHook',
    ]
    assert log[-1] == (
        'running on the CPU, 2 processes connected by gloo, SyncBN replaced by BN, '
        'val_cfg without fp16'
    )


def test_a_wrapper_of_the_configs_own_keeps_its_settings(log):
    own = dict(type='MMDistributedDataParallel', static_graph=True)
    sharded = dict(type='MMFullyShardedDataParallel')
    for wrapper, wanted in ((own, dict(own, device_ids=None)), (sharded, sharded)):
        cfg = Config(dict(model=dict(), launcher='pytorch', model_wrapper_cfg=wrapper))
        adapt_cpu(cfg, Machine('cpu', 2))
        assert cfg.model_wrapper_cfg == wanted
        assert 'custom_hooks' not in cfg
