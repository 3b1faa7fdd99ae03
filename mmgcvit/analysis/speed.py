"""How fast a model infers and trains on this machine, and how much memory that takes."""

import copy
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from ..engine import load_config
from ..engine.device import choose_device
from ..engine.optimizers.mixed_precision import ONLY_AMP, in_mixed_precision, mixed_parts
from ..errors import UserError
from ..task import SEGMENTATION, require_task
from ..weights import register_checkpoint_loaders
from .samples import random_batch

INFERENCE, TRAINING = 'inference', 'training step'
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        config: Path of a config file.
        checkpoint: Path or URL of weights. None for random ones, with which a detector finds next
            to nothing, so that no masks are computed and drawn.
        cfg_options: Settings that replace those of the config, by dotted names.
        shape: H and W of the images; None for what is usual for the task.
        batch_size: Images a step.
        dtype: float32, or bfloat16 or float16 in mixed precision.
        compile: Whether the backbone goes through torch.compile.
        warm_up: Steps that are not measured.
        runs: Steps that are.
    """

    config: str
    checkpoint: str | None = None
    cfg_options: dict[str, Any] | None = None
    shape: tuple[int, int] | None = None
    batch_size: int = 2
    dtype: str = 'float32'
    compile: bool = False
    warm_up: int = 3
    runs: int = 20


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        phase: INFERENCE, from images in memory to results, or TRAINING, with the optimizer's step.
        device: Name of the GPU, or the CPU and its threads.
        shape: H and W of the images.
        images_per_second: Over all runs.
        latency_ms: Percentile → milliseconds a step.
        peak_memory: Bytes: of tensors on a GPU; on a CPU of the whole process.
        memory_before: Bytes of the process before there was a model; 0 on a GPU.
    """

    phase: str
    device: str
    shape: tuple[int, int]
    images_per_second: float
    latency_ms: dict[int, float]
    peak_memory: int
    memory_before: int


def measure(settings: Settings, phase: str) -> Speed:
    """Measure one phase; peak memory on a CPU is right only in a process of its own.

    Raises:
        UserError: If the settings do not fit together or to this machine.
    """
    device = choose_device()
    if settings.dtype == 'float16' and device == 'cpu':
        raise UserError('--dtype float16 needs a GPU; on a CPU give bfloat16 or float32')
    # a line for every parameter otherwise
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    memory_before = 0 if device == 'cuda' else peak_process_memory()
    cfg = load_config(settings.config, options=settings.cfg_options)
    task = require_task(cfg)
    shape = settings.shape or task.timed_shape
    model = build_model(cfg, settings).to(device)
    batch = random_batch(cfg.model, task, settings.batch_size, shape)
    step = _training_step(model, cfg, settings) if phase == TRAINING else _inference(model)
    try:
        seconds = _time(step, batch, settings, device)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f'{phase}: out of GPU memory; give a smaller --batch-size or --shape'
        ) from error
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(
            '--batch-size 1 cannot be trained: batch norm needs several values a channel, which '
            'a map pooled to one pixel has only with several images; give at least 2'
        ) from error
    percentiles = np.percentile(seconds, PERCENTILES)
    cuda = device == 'cuda'
    threads = f'CPU, {torch.get_num_threads()} threads'
    return Speed(
        phase,
        torch.cuda.get_device_name() if cuda else threads,
        tuple(shape),
        settings.batch_size * len(seconds) / sum(seconds),
        {p: 1e3 * float(s) for p, s in zip(PERCENTILES, percentiles, strict=True)},
        torch.cuda.max_memory_allocated() if cuda else peak_process_memory(),
        memory_before,
    )


def peak_process_memory() -> int:
    """Return the largest resident size of this process so far, in bytes (Linux)."""
    # not getrusage's ru_maxrss: a new process inherits that from the one that started it
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return 1024 * int(line.split()[1])
    raise UserError('/proc/self/status has no line VmHWM: memory can be measured on Linux only')


def build_model(cfg: Config, settings: Settings) -> nn.Module:
    """Build a config's model with its checkpoint, precision and compilation."""
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    cfg.model.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    if settings.checkpoint is not None:
        register_checkpoint_loaders()
        try:
            load_checkpoint(model, settings.checkpoint, map_location='cpu', strict=True)
        except RuntimeError as error:
            raise UserError(
                f'the checkpoint {settings.checkpoint} is not one of the model of '
                f'{settings.config}: {" ".join(str(error).split())[:300]}'
            ) from error
    dtype = getattr(torch, settings.dtype)
    if dtype is not torch.float32:
        if require_task(cfg) is SEGMENTATION or dtype is torch.float16:
            model.forward = in_mixed_precision(model, dtype, to_float32=False)
        else:  # as BFloat16OptimWrapper does
            for part in mixed_parts(model):
                part.forward = in_mixed_precision(part, dtype)
    if settings.compile:
        model.backbone = torch.compile(model.backbone)
    return model


def _inference(model: nn.Module) -> Callable[[dict], Any]:
    model.eval()
    return torch.no_grad()(model.test_step)


def _training_step(model: nn.Module, cfg: Config, settings: Settings) -> Callable[[dict], Any]:
    """Return what trains on a batch, with the config's optimizer and without accumulation."""
    model.train()
    dropped = ('type', 'accumulative_counts', *ONLY_AMP)
    wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in dropped}
    if settings.dtype == 'float16':
        wrapper |= dict(type='AmpOptimWrapper', loss_scale='dynamic')
    optim_wrapper = build_optim_wrapper(model, wrapper)
    return functools.partial(model.train_step, optim_wrapper=optim_wrapper)


def _time(step: Callable[[dict], Any], batch: dict, settings: Settings, device: str) -> list[float]:
    """Return the seconds that each run takes, after those that warm up."""
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    seconds = []
    for run in range(-settings.warm_up, settings.runs):
        # a step may write into its data samples
        data = copy.deepcopy(batch)
        if run == 0 and device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        wait()
        start = time.perf_counter()
        step(data)
        wait()
        if run >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds
