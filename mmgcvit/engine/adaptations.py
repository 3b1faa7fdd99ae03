"""All changes that this package makes to a config before the runner is built.

An adaptation is called as ``adapt_…(cfg, machine)`` and changes ``cfg`` in place.
:func:`build_runner` passes a copy. The adaptations in ``ADAPTATIONS`` run for every config, in that
order. Options of the tools (``adapt_amp``, ``adapt_lr_scaling``, ``adapt_test`` and the adaptations
in :mod:`mmgcvit.evaluation`) run before them.

A type in a config is a name, a name with a scope, an import path or a class, so types are compared
as classes. A config whose types are classes contains references that mmengine resolves when a value
is read. Parts of such a config are moved without reading them: mmengine cannot dump a config with
resolved references.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIMIZERS, Registry
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..mmcv_ops import require_operators
from ..registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, STRATEGIES, class_of
from ..task import CLASSIFICATION, SEGMENTATION, task_of
from .device import Machine, gpu_failure
from .fsdp import ResumableFSDPStrategy, shards_on_cpu
from .hooks import (
    AverageBatchNorm,
    BadLossHook,
    CheckpointFitHook,
    ExactResumeHook,
    ResumedSettingsHook,
    StopOnSigtermHook,
    UnusedParametersHook,
)
from .hooks.bad_loss import FUSED
from .optimizers import BFloat16OptimWrapper, LayerDecayOptimWrapperConstructor
from .optimizers.mixed_precision import ONLY_AMP
from .palettes import adapt_palettes
from .resume import resume_training

Adaptation = Callable[[Config, Machine], None]

REPLACED_HOOKS = {
    CheckpointHook: 'mmgcvit.SafeCheckpointHook',
    EarlyStoppingHook: 'mmgcvit.ResumableEarlyStoppingHook',
}
SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')  # names in mmcv's registry, class name


def adapt_amp(cfg: Config, machine: Machine) -> None:
    """Train in mixed precision (``--amp``). The optimizer wrapper keeps its settings.

    Raises:
        UserError: If there is no optimizer wrapper, or it is neither OptimWrapper nor
            AmpOptimWrapper.
    """
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        raise UserError(
            '--amp needs an optim_wrapper, and the config has none: add it, or train without --amp'
        )
    cls = _class_of(cfg, wrapper.get('type', 'OptimWrapper'), OPTIM_WRAPPERS)
    if cls is OptimWrapper:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif cls is not AmpOptimWrapper:
        raise UserError(
            '--amp needs optim_wrapper.type OptimWrapper or AmpOptimWrapper, and the config has '
            f'{getattr(cls, "__name__", wrapper.type)}: set optim_wrapper.type, or train without '
            '--amp'
        )


def adapt_lr_scaling(cfg: Config, machine: Machine) -> None:
    """Scale the learning rate with the batch size (``--auto-scale-lr``).

    Raises:
        UserError: If the config does not specify the batch size of its learning rate.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError(
            "--auto-scale-lr needs the batch size, over all processes, for which the config's "
            'learning rate was chosen: add auto_scale_lr = dict(base_batch_size=16) to the config'
        )
    cfg.auto_scale_lr.enable = True


def adapt_test(cfg: Config, machine: Machine) -> None:
    """Test with mmengine's Runner: checkpoints contain the complete model, even of sharded runs.

    Raises:
        UserError: If the config lacks a part that testing needs.
    """
    needed = ('test_dataloader', 'test_evaluator', 'test_cfg')
    missing = [name for name in needed if cfg.get(name) is None]
    if missing:
        raise UserError(
            f'testing needs {", ".join(needed)}, and the config has no {", ".join(missing)}: add '
            f'them, for example {missing[0]} = {missing[0].replace("test", "val")}'
        )
    cfg.pop('runner_type', None)
    cfg.pop('strategy', None)


def adapt_launcher(cfg: Config, machine: Machine) -> None:
    """Convert the launcher and the model wrapper to values that mmengine's runners accept."""
    if cfg.get('launcher') == 'slurm':
        cfg.launcher = 'pytorch'  # start_processes has translated Slurm's variables to torchrun's
    wrapper = cfg.get('model_wrapper_cfg') or {}
    kind = wrapper.get('type')
    if isinstance(kind, type):  # Runner.wrap_model looks it up as a string
        wrapper['type'] = f'{kind.__module__}.{kind.__qualname__}'


def adapt_precision(cfg: Config, machine: Machine) -> None:
    """Replace AmpOptimWrapper with BFloat16OptimWrapper where AmpOptimWrapper does not work.

    On a CPU, it does not work with any dtype. On CUDA, it does not work for detectors in bfloat16.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if _class_of(cfg, wrapper, OPTIM_WRAPPERS) is not AmpOptimWrapper:
        return
    in_bfloat16 = wrapper.get('dtype') in ('bfloat16', torch.bfloat16)
    # a model of an unknown task may compute boxes
    without_boxes = task_of(cfg) in (SEGMENTATION, CLASSIFICATION)
    if machine.device == 'cpu' or (in_bfloat16 and not without_boxes):
        for name in ONLY_AMP:
            wrapper.pop(name, None)
        wrapper['type'] = 'mmgcvit.BFloat16OptimWrapper'


def adapt_optimizer(cfg: Config, machine: Machine) -> None:
    """Use the fused kernels of torch's Adam, AdamW and SGD on CUDA, and log it on rank 0.

    Only they let BadLossHook skip a bad update without making the GPU wait for the host. A config
    that sets ``fused``, ``foreach`` or ``differentiable`` keeps its settings.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    optimizer = wrapper.get('optimizer') or {}
    cls = _class_of(cfg, optimizer, OPTIMIZERS)
    strategy = cfg.get('strategy') or {}
    if (
        machine.device != 'cuda'
        or _class_of(cfg, wrapper.get('type', 'OptimWrapper'), OPTIM_WRAPPERS)
        not in (OptimWrapper, AmpOptimWrapper, BFloat16OptimWrapper)
        or cls not in FUSED
        or 'fused' not in inspect.signature(cls).parameters  # SGD before torch 2.3
        or any(optimizer.get(name) is not None for name in ('fused', 'foreach', 'differentiable'))
        # other strategies wrap the optimizer, and offloaded parameters are not on the GPU
        or (strategy and _class_of(cfg, strategy, STRATEGIES) is not ResumableFSDPStrategy)
        or (strategy.get('model_wrapper') or {}).get('cpu_offload')
    ):
        return
    optimizer['fused'] = True
    if is_main_process():
        print_log(f'{cls.__name__} with fused=True: the GPU skips bad updates', logger='current')


def adapt_fsdp(cfg: Config, machine: Machine) -> None:
    """Replace mmengine's FSDPStrategy with this package's, which supports resuming and CPUs.

    Raises:
        UserError: If it is used in a single process, on a CPU with an old PyTorch, or combined with
            a feature it does not support.
    """
    strategy = cfg.get('strategy') or {}
    if _class_of(cfg, strategy, STRATEGIES) not in (FSDPStrategy, ResumableFSDPStrategy):
        return
    strategy['type'] = 'mmgcvit.FSDPStrategy'
    if cfg.get('launcher', 'none') == 'none':
        raise UserError(
            'strategy FSDPStrategy shards a model across processes: start them with '
            'tools/dist_train.sh, or train with the config that this one inherits from'
        )
    if any(issubclass(cls, EMAHook) for cls in _hook_classes(cfg)):
        raise UserError(
            'strategy FSDPStrategy and EMAHook cannot be combined, because the averaged model is '
            'not sharded: remove one of them from the config'
        )
    constructor = _class_of(
        cfg, (cfg.get('optim_wrapper') or {}).get('constructor'), OPTIM_WRAPPER_CONSTRUCTORS
    )
    if _is_subclass(constructor, LayerDecayOptimWrapperConstructor):
        raise UserError(
            'strategy FSDPStrategy and layer-wise learning-rate decay cannot be combined, because '
            "shards lose the parameter's shape: remove one of them from the config"
        )
    if machine.device == 'cpu':
        if not shards_on_cpu():
            raise UserError(
                f'strategy FSDPStrategy needs a GPU with PyTorch {torch.__version__}: train on '
                'GPUs, or install a newer version of PyTorch'
            )
        strategy['model_wrapper'] = strategy.get('model_wrapper') or ConfigDict()
        strategy['model_wrapper']['device_id'] = 'cpu'


def adapt_hooks(cfg: Config, machine: Machine) -> None:
    """Add this package's hooks. Hooks that the config already has keep their settings.

    SafeCheckpointHook replaces mmengine's CheckpointHook, and ResumableEarlyStoppingHook replaces
    EarlyStoppingHook, with the same settings. This runs before ``adapt_cpu``, which replaces
    SyncBN.
    """
    cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
    cfg.default_hooks.setdefault('checkpoint', ConfigDict())
    if cfg.default_hooks.checkpoint is not None:  # None disables checkpoints
        cfg.default_hooks.checkpoint.setdefault('type', 'CheckpointHook')
    for hook in _hooks(cfg):
        if replacement := REPLACED_HOOKS.get(_class_of(cfg, hook, HOOKS)):
            hook['type'] = replacement
    wanted = [
        *(BadLossHook, UnusedParametersHook, StopOnSigtermHook),
        *(ResumedSettingsHook, CheckpointFitHook, ExactResumeHook),
    ]
    if machine.device == 'cpu' and machine.processes > 1 and _uses_sync_bn(cfg):
        wanted.insert(0, AverageBatchNorm)
    present = list(_hook_classes(cfg))
    cfg.custom_hooks = [
        *(cfg.get('custom_hooks') or []),
        *(
            ConfigDict(type=f'mmgcvit.{hook.__name__}')
            for hook in wanted
            if not any(issubclass(cls, hook) for cls in present)
        ),
    ]


def adapt_cpu(cfg: Config, machine: Machine) -> None:
    """Replace settings that a CPU does not support, and log the changes in one line on rank 0.

    BN replaces SyncBN, evaluation in float32 replaces evaluation in half precision, and
    DistributedDataParallel is set up without a GPU.
    """
    if machine.device != 'cpu':
        return
    changes = ['running on the CPU']
    if torch.cuda.is_available():
        remedy = 'install torchvision for CUDA from the same index as torch'
        if require_operators().compiled:
            remedy = "replace mmcv with mmcv-lite to use torchvision's operators"
        changes = [
            "running on the CPU although there is a GPU: mmcv's operators do not run on it "
            f'({gpu_failure()}); {remedy}'
        ]
    processes = machine.processes
    if cfg.get('launcher', 'none') != 'none':
        changes.append(f'{processes} process{"es" * (processes > 1)} connected by gloo')
        _use_gloo(cfg, processes)
    if _uses_sync_bn(cfg):
        cfg.pop('sync_bn', None)
        for layer in _sync_bn_configs(cfg.get('model')):
            layer['type'] = 'BN'
        changes.append('SyncBN replaced by BN')
    for name in ('val_cfg', 'test_cfg'):
        if (cfg.get(name) or {}).pop('fp16', False):
            changes.append(f'{name} without fp16')
    if is_main_process():
        print_log(', '.join(changes), logger='current')


def _use_gloo(cfg: Config, processes: int) -> None:
    # DDP regroups gradients after its first step, unless it searches for unused parameters. Sums
    # over three or more processes depend on the groups, and a resumed run begins with the initial
    # groups again.
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', processes > 2),
    )
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    if _is_subclass(_class_of(cfg, wrapper, MODEL_WRAPPERS), DistributedDataParallel):
        wrapper['device_ids'] = None  # the Runner would set a GPU
    cfg.model_wrapper_cfg = wrapper


def adapt_resume(cfg: Config, machine: Machine) -> None:
    """Find the checkpoint to resume from, if ``cfg.resume`` is set.

    ``resume`` may be a checkpoint, or 'auto' for the newest one in the work dir. True means
    ``load_from``, or 'auto' if ``load_from`` is not set.
    """
    if resume := cfg.get('resume'):
        checkpoint = cfg.get('load_from') if resume is True else resume
        resume_training(cfg, None if checkpoint == 'auto' else checkpoint)


ADAPTATIONS: tuple[Adaptation, ...] = (
    adapt_launcher,
    adapt_precision,
    adapt_fsdp,
    adapt_optimizer,
    adapt_hooks,
    adapt_cpu,
    adapt_palettes,
    adapt_resume,
)


def _class_of(cfg: Config, config: Any, registry: Registry) -> Any:
    return class_of(config, registry, cfg.get('default_scope'))


def _is_subclass(cls: Any, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base)


def _hooks(cfg: Config) -> Iterator[ConfigDict]:
    yield from (hook for hook in (cfg.get('default_hooks') or {}).values() if hook is not None)
    yield from cfg.get('custom_hooks') or []


def _hook_classes(cfg: Config) -> Iterator[type]:
    classes = (_class_of(cfg, hook, HOOKS) for hook in _hooks(cfg))
    return (cls for cls in classes if isinstance(cls, type))


def _uses_sync_bn(cfg: Config) -> bool:
    return cfg.get('sync_bn') is not None or any(True for _ in _sync_bn_configs(cfg.get('model')))


def _sync_bn_configs(node: Any) -> Iterator[dict]:
    """Yield the config of every SyncBN in a model's config."""
    if isinstance(node, dict):
        # by name: a model's config has types of several registries
        kind = node.get('type')
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name.rpartition('.')[2] in SYNC_BN:
            yield node
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for part in node:
        yield from _sync_bn_configs(part)
