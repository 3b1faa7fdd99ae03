"""Time, memory and disk space of a training, predicted from a few updates."""

import contextlib
import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import MODELS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...errors import counted
from ...models.gcvit import GCViT
from ...progress import duration
from ...registry import class_of
from ...task import inner_model
from ..device import Machine
from ..options import accumulative_counts

GB = 1e9
CONTAINER_LIMITS = (
    '/sys/fs/cgroup/memory.max',
    '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)
FULL = 0.9  # share of the memory above which other batches may not fit


@dataclass
class Measured:
    """What a rehearsal measured in this process.

    Attributes:
        per_iteration: Seconds per iteration, data loading included.
        per_image: Seconds per image of the validation, 0 if it was not measured.
        peak: Largest memory in bytes: allocated on the GPU, or of this process on a CPU.
        checkpoint: Size of a checkpoint in bytes, 0 if none was saved.
    """

    per_iteration: float
    per_image: float
    peak: int
    checkpoint: int


def peak_memory(machine: Machine) -> int:
    """Return the peak memory of this process in bytes, see :class:`Measured`."""
    if machine.device == 'cuda':
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def predict_time(
    runner: Runner, start: int, per_epoch: int, images: int, measured: Measured
) -> str:
    """Return the time that the training takes, with the numbers that it is computed from.

    Args:
        runner: Runner after the rehearsal's updates.
        start: Iterations that were done before, if the training is resumed.
        per_epoch: Iterations of an epoch.
        images: Images of the validation per process.
        measured: Measurements.
    """
    loop = runner.train_loop
    length = per_epoch if isinstance(loop, EpochBasedTrainLoop) else 1  # of an epoch or iteration
    steps = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    iterations = steps * length - start
    seconds = iterations * measured.per_iteration
    text = f'{counted(iterations, "iteration")} × {measured.per_iteration:.2f} s'
    if runner.val_loop is not None and measured.per_image:
        begin = max(runner.cfg.train_cfg.get('val_begin', 1), start // length + 1)
        validations = sum(
            step % loop.val_interval == 0 or step == steps for step in range(begin, steps + 1)
        )
        seconds += validations * images * measured.per_image
        text += f' + {counted(validations, "validation")} × {counted(images, "image")}'
        text += f' × {measured.per_image:.2f} s'
    return f'{duration(seconds)} = {text}'


def predict_memory(cfg: Config, machine: Machine, peak: int) -> tuple[str, str | None]:
    """Return the memory that is used, and a proposal if other batches may not fit.

    Args:
        cfg: Config of the training.
        machine: Device and processes.
        peak: Largest memory of a process.
    """
    if machine.device == 'cuda':
        total, used, what = torch.cuda.mem_get_info()[1], peak, 'GPU memory'
    else:
        total, used, what = _memory_of_machine(), peak * machine.processes, 'memory'
    text = f'{used / GB:.1f} of {total / GB:.1f} GB {what}'
    if used < FULL * total:
        return text, None
    return text, f'{text}: another batch may not fit. {proposals(cfg, machine)}'


def _memory_of_machine() -> int:
    """Return the memory in bytes, or the limit of the container if that is less."""
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for limit in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # 'max' without a limit
            total = min(total, int(Path(limit).read_text()))
    return total


def proposals(cfg: Config, machine: Machine) -> str:
    """Return the settings that save memory and that the config does not use yet."""
    texts = []
    size = cfg.train_dataloader.get('batch_size') or 1
    if size > 1:
        counts = accumulative_counts(cfg) * 2
        texts.append(
            f'train_dataloader.batch_size={size // 2} with '
            f'optim_wrapper.accumulative_counts={counts} (the images per update stay the same, and '
            'so does the learning rate)'
        )
    backbone = inner_model(cfg).get('backbone') or {}
    cls = class_of(backbone, MODELS, cfg.get('default_scope'))
    if (
        isinstance(cls, type)
        and issubclass(cls, GCViT)
        and not (backbone.get('recompute') == 'block' or backbone.get('with_cp'))
    ):
        texts.append('model.backbone.recompute=block')
    wrapper = (cfg.get('optim_wrapper') or {}).get('type', 'OptimWrapper')
    if machine.device == 'cuda' and wrapper == 'OptimWrapper':
        texts.append('--amp')
    texts.append('smaller images in train_dataloader.dataset.pipeline')
    return f'Any of these saves memory: {"; ".join(texts)}'


def predict_disk(
    runner: Runner, folder: str, per_epoch: int, size: int
) -> tuple[str | None, str | None]:
    """Return the disk space of the checkpoints, and a remedy if there is less.

    Args:
        runner: Runner after the rehearsal's updates.
        folder: Folder in which the training saves its checkpoints.
        per_epoch: Iterations of an epoch.
        size: Size of a checkpoint in bytes.
    """
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    if not hooks or not size:
        return None, None
    configs = (runner.cfg.get('default_hooks') or {}).get('checkpoint') or {}
    hook, loop = hooks[0], runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    length = loop.max_epochs if by_epoch else loop.max_iters
    if by_epoch and not hook.by_epoch:
        length *= per_epoch
    interval = configs.get('interval', -1)
    kept = length // interval if interval > 0 else 0
    if hook.save_last and (interval <= 0 or length % interval):
        kept += 1
    if hook.max_keep_ckpts > 0:
        kept = min(kept, hook.max_keep_ckpts)
    best = len(hook.save_best or ())
    # a checkpoint is complete before an old one is removed
    needed = (kept + best + 1) * size
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f'no checkpoints in {folder}', (
            f'{folder} is not a folder in which this user can write: set --work-dir to another one'
        )
    free = shutil.disk_usage(folder).free
    text = (
        f'{needed / GB:.1f} of {free / GB:.1f} GB disk ({kept} kept, {best} best and 1 being '
        f'written, {size / 1e6:.0f} MB each)'
    )
    if needed < free:
        return text, None
    return text, (
        f'{text}: the disk of {folder} will be full. Set default_hooks.checkpoint.max_keep_ckpts=2 '
        'or a larger default_hooks.checkpoint.interval, or --work-dir on another disk'
    )
