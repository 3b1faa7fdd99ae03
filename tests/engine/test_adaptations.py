"""What build_runner and the tools' options make of a config, in whichever form it names types."""

import copy
import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import MMDistributedDataParallel, PretrainedInit
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from toy import ToyModel, toy_config

from mmgcvit.engine import (
    BadLossHook,
    ExactResumeHook,
    LayerDecayOptimWrapperConstructor,
    adapt_amp,
    adapt_lr_scaling,
    adapt_test,
    build_runner,
    load_config,
)
from mmgcvit.engine.adaptations import (
    adapt_cpu,
    adapt_fsdp,
    adapt_hooks,
    adapt_launcher,
    adapt_optimizer,
    adapt_precision,
)
from mmgcvit.engine.device import Machine
from mmgcvit.engine.resume import forget_pretrained
from mmgcvit.errors import UserError
from mmgcvit.evaluation import adapt_dump, adapt_tta

CONFIGS = Path(__file__).parents[1] / 'data' / 'configs'
CPU, GPU = Machine('cpu', 2), Machine('cuda', 2)
OPTIONS = [
    (),
    (adapt_amp, adapt_lr_scaling),
    (adapt_test, partial(adapt_dump, path='found.pkl'), adapt_tta),
]


@pytest.mark.parametrize('options', OPTIONS, ids=['none', 'training', 'test'])
@pytest.mark.parametrize(
    'name',
    ['mask_rcnn_tiny', 'classes/mask_rcnn', 'classes/fcn', 'upernet_tiny', 'classifier_tiny'],
)
def test_the_config_is_not_changed_and_gives_the_same_runner_twice(
    tmp_path, monkeypatch, name, options
):
    monkeypatch.syspath_prepend(str(CONFIGS.parent / 'scripts'))
    cfg = load_config(CONFIGS / f'{name}.py', tmp_path)
    cfg.auto_scale_lr = dict(base_batch_size=8)
    before, text = copy.deepcopy(cfg).to_dict(), cfg.pretty_text
    built = [build_runner(cfg, *options).cfg.to_dict() for _ in range(2)]
    assert cfg.to_dict() == before and cfg.pretty_text == text
    assert built[0] == built[1] != before


def test_a_resumed_training_does_not_change_its_config_either(tmp_path):
    cfg = toy_config(tmp_path, iterations=2)
    build_runner(cfg).train()
    cfg.resume = 'auto'
    before = copy.deepcopy(cfg)
    runner = build_runner(cfg)
    assert cfg.to_dict() == before.to_dict()
    assert runner.cfg.load_from == str(tmp_path / 'iter_2.pth')


def forms(cls, scope='mmengine', name=None):
    """The forms in which a config can give a class."""
    name = name or cls.__name__
    return [name, f'{scope}.{name}', f'{cls.__module__}.{cls.__name__}', cls]


class OwnBadLoss(BadLossHook):
    """A user's variant."""


@pytest.mark.parametrize(
    'hook',
    [
        *(dict(type=form, max_consecutive=5) for form in forms(BadLossHook, 'mmgcvit')[1:]),
        dict(type='mmgcvit.engine.BadLossHook', max_consecutive=5),
        dict(type=OwnBadLoss, max_consecutive=5),
    ],
)
def test_a_hook_that_the_config_has_is_kept(hook):
    for place in (dict(custom_hooks=[hook]), dict(default_hooks=dict(own=hook))):
        cfg = Config(copy.deepcopy(place))
        adapt_hooks(cfg, CPU)
        added = [other.type for other in cfg.custom_hooks]
        names = ('UnusedParametersHook', 'StopOnSigtermHook', 'ResumedSettingsHook')
        names += ('CheckpointFitHook', 'ExactResumeHook')
        assert added[-5:] == [f'mmgcvit.{name}' for name in names]
        assert 'mmgcvit.BadLossHook' not in added[-5:] and len(added) == 5 + (
            'custom_hooks' in place
        )
        kept = cfg.custom_hooks[0] if 'custom_hooks' in place else cfg.default_hooks.own
        assert kept == hook


@pytest.mark.parametrize('form', forms(CheckpointHook))
def test_checkpoints_are_saved_safely_with_their_settings(form):
    hook = dict(type=form, interval=7)
    cfg = Config(dict(default_hooks=dict(checkpoint=hook), custom_hooks=[dict(hook)]))
    adapt_hooks(cfg, GPU)
    safe = dict(type='mmgcvit.SafeCheckpointHook', interval=7)
    assert cfg.default_hooks.checkpoint == safe and cfg.custom_hooks[0] == safe


@pytest.mark.parametrize('hooks', [None, dict(checkpoint=None)])
def test_a_config_may_have_no_checkpoints_or_no_default_hooks(hooks):
    cfg = Config(dict(default_hooks=hooks))
    adapt_hooks(cfg, GPU)
    wanted = None if hooks else dict(type='mmgcvit.SafeCheckpointHook')
    assert cfg.default_hooks.checkpoint == wanted


def sync_bns():
    from mmcv.ops import SyncBatchNorm

    scoped = ['SyncBN', 'MMSyncBN', 'mmengine.SyncBN', 'torch.nn.SyncBatchNorm']
    return [*scoped, torch.nn.SyncBatchNorm, SyncBatchNorm]


@pytest.mark.parametrize('form', range(6))
def test_sync_bn_is_replaced_on_a_cpu_only(form, log):
    form = sync_bns()[form]
    layers = [dict(norm_cfg=dict(type=form, eps=0.1)), dict(norm_cfg=dict(type='GN'))]
    cfg = Config(dict(model=dict(type=ToyModel, layers=layers)))
    gpu = copy.deepcopy(cfg)
    for adapt in (adapt_hooks, adapt_cpu):
        adapt(gpu, GPU)
        adapt(cfg, CPU)
    assert gpu.model.layers[0].norm_cfg == dict(type=form, eps=0.1)
    assert [layer.norm_cfg.type for layer in cfg.model.layers] == ['BN', 'GN']
    average = [hook for hook in cfg.custom_hooks if hook.type == 'mmgcvit.AverageBatchNorm']
    assert len(average) == 1 and average[0] not in gpu.custom_hooks
    said = [line for line in log if line.startswith('running')]
    assert said == ['running on the CPU, SyncBN replaced by BN']


@pytest.mark.parametrize('form', [None, *forms(OptimWrapper)])
def test_mixed_precision_of_each_form(form):
    cfg = Config(dict(model=dict(), optim_wrapper=dict(type=form, clip_grad=dict(max_norm=1.0))))
    if form is None:
        del cfg.optim_wrapper['type']
    adapt_amp(cfg, CPU)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    adapt_precision(cfg, CPU)
    wanted = dict(type='mmgcvit.BFloat16OptimWrapper', clip_grad=dict(max_norm=1.0))
    assert cfg.optim_wrapper == wanted


@pytest.mark.parametrize('form', forms(AmpOptimWrapper))
def test_a_config_of_mixed_precision_runs_on_a_cpu_in_each_form(form):
    cfg = Config(dict(model=dict(), optim_wrapper=dict(type=form, loss_scale=512.0)))
    adapt_amp(cfg, CPU)
    assert cfg.optim_wrapper == dict(type=form, loss_scale=512.0)
    adapt_precision(cfg, CPU)
    assert cfg.optim_wrapper == dict(type='mmgcvit.BFloat16OptimWrapper')


def test_an_optimizer_wrapper_that_amp_does_not_suit_is_named():
    class Own(OptimWrapper):
        pass

    with pytest.raises(UserError, match=r'--amp needs .* the config has Own: set optim_wrapper'):
        adapt_amp(Config(dict(optim_wrapper=dict(type=Own))), CPU)


def sharded(form, **settings):
    settings.setdefault('optim_wrapper', dict(type='OptimWrapper'))
    return Config(dict(strategy=dict(type=form), launcher='pytorch', **settings))


@pytest.mark.parametrize('form', [*forms(FSDPStrategy), 'mmgcvit.FSDPStrategy'])
def test_fsdp_of_each_form(form):
    cfg = sharded(form)
    adapt_fsdp(cfg, CPU)
    assert cfg.strategy == dict(type='mmgcvit.FSDPStrategy', model_wrapper=dict(device_id='cpu'))


@pytest.mark.parametrize(
    'form', forms(LayerDecayOptimWrapperConstructor, 'mmgcvit')[1:], ids=['name', 'path', 'class']
)
def test_fsdp_refuses_layer_decay_in_each_form(form):
    with pytest.raises(UserError, match='FSDPStrategy and layer-wise learning-rate decay cannot'):
        adapt_fsdp(sharded(FSDPStrategy, optim_wrapper=dict(constructor=form)), GPU)


@pytest.mark.parametrize('form', ['mmpretrain.EMAHook', 'EMAHook', EMAHook])
def test_fsdp_refuses_averaged_models_of_other_libraries_too(form):
    hooks = [dict(type=form)]
    with pytest.raises(UserError, match='FSDPStrategy and EMAHook cannot be combined'):
        adapt_fsdp(sharded(FSDPStrategy, custom_hooks=hooks, default_scope='mmpretrain'), GPU)


def test_processes_are_described_as_mmengines_runners_accept_them():
    wrapper = dict(type=MMDistributedDataParallel, broadcast_buffers=True)
    cfg = Config(dict(launcher='slurm', model_wrapper_cfg=wrapper))
    adapt_launcher(cfg, GPU)
    path = 'mmengine.model.wrappers.distributed.MMDistributedDataParallel'
    assert cfg.launcher == 'pytorch'
    assert cfg.model_wrapper_cfg == dict(type=path, broadcast_buffers=True)


@pytest.mark.parametrize('form', forms(PretrainedInit, name='Pretrained'))
def test_a_resumed_training_drops_pretrained_weights_of_each_form(form):
    model = ToyModel()
    kept = dict(type='Constant', val=1.0)
    model.init_cfg = [dict(type=form, checkpoint='x.pth'), kept]
    forget_pretrained(model)
    assert model.init_cfg == [kept]


def test_hooks_are_added_to_the_dump_of_a_config_once(tmp_path):
    cfg = toy_config(tmp_path, iterations=1)
    build_runner(cfg).train()
    (dump,) = tmp_path.glob('*.py')
    runner = build_runner(Config.fromfile(dump))
    ours = [hook for hook in runner.hooks if isinstance(hook, BadLossHook | ExactResumeHook)]
    assert len(ours) == 2


def test_a_config_without_what_an_option_needs_is_refused():
    with pytest.raises(UserError, match='--amp needs an optim_wrapper'):
        adapt_amp(Config(dict(model=dict())), CPU)
    cfg = Config(dict(test_dataloader=dict(), test_evaluator=None))
    with pytest.raises(UserError, match=r'has no test_evaluator, test_cfg: .* = val_evaluator'):
        adapt_test(cfg, CPU)


def test_a_checkpoint_is_tested_as_a_whole_however_it_was_trained():
    needed = dict(test_dataloader=dict(), test_evaluator=dict(), test_cfg=dict())
    cfg = Config(dict(needed, runner_type='FlexibleRunner', strategy=dict(type='FSDPStrategy')))
    adapt_test(cfg, CPU)
    assert cfg.to_dict() == needed


def optimizer_of(machine, optimizer, **settings):
    cfg = Config(dict(optim_wrapper=dict(optimizer=optimizer), **settings))
    before = copy.deepcopy(cfg.optim_wrapper.optimizer)
    adapt_optimizer(cfg, machine)
    return before, cfg.optim_wrapper.optimizer


needs_fused_sgd = pytest.mark.skipif(
    'fused' not in inspect.signature(torch.optim.SGD).parameters, reason='SGD before torch 2.3'
)


@pytest.mark.parametrize(
    'cls',
    [
        torch.optim.Adam,
        torch.optim.AdamW,
        pytest.param(torch.optim.SGD, marks=needs_fused_sgd),
    ],
)
@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'AmpOptimWrapper', None])
def test_optimizers_are_fused_on_a_gpu_in_each_form(cls, wrapper, log):
    for form in forms(cls, 'mmengine'):
        cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type=form, lr=0.1))))
        if wrapper:
            cfg.optim_wrapper.type = wrapper
        adapt_optimizer(cfg, GPU)
        assert cfg.optim_wrapper.optimizer == dict(type=form, lr=0.1, fused=True)
    said = [line for line in log if 'fused' in line]
    assert said == [f'{cls.__name__} with fused=True: the GPU skips bad updates'] * 4


@pytest.mark.parametrize(
    ('machine', 'optimizer', 'settings'),
    [
        (CPU, {}, {}),
        (GPU, dict(fused=False), {}),
        (GPU, dict(foreach=True), {}),
        (GPU, dict(differentiable=True), {}),
        (GPU, dict(type='Adagrad'), {}),
        (GPU, dict(type='RMSprop'), {}),
        (GPU, {}, dict(strategy=dict(type='DeepSpeedStrategy'))),
        (
            GPU,
            {},
            dict(strategy=dict(type='mmgcvit.FSDPStrategy', model_wrapper=dict(cpu_offload=True))),
        ),
    ],
    ids=str,
)
def test_other_optimizers_keep_their_settings(machine, optimizer, settings):
    before, after = optimizer_of(machine, dict(dict(type='AdamW', lr=0.1), **optimizer), **settings)
    assert after == before


@needs_fused_sgd
def test_an_optimizer_is_fused_with_fsdp_and_in_bfloat16():
    fsdp = dict(strategy=dict(type='mmgcvit.FSDPStrategy', model_wrapper=dict(device_id=0)))
    assert optimizer_of(GPU, dict(type='SGD', lr=0.1), **fsdp)[1].fused is True
    cfg = Config(dict(model=dict(), optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16')))
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=0.1)
    adapt_precision(cfg, GPU)
    adapt_optimizer(cfg, GPU)
    assert cfg.optim_wrapper.type == 'mmgcvit.BFloat16OptimWrapper'
    assert cfg.optim_wrapper.optimizer.fused is True


@pytest.mark.parametrize('settings', [{}, dict(optim_wrapper=None), dict(optim_wrapper=dict())])
def test_a_config_without_an_optimizer_is_left_alone(settings):
    cfg = Config(dict(settings))
    adapt_optimizer(cfg, GPU)
    assert cfg.to_dict() == settings
