"""Speed and memory of a model's inference and training on this machine."""

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
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from torch import nn

from ..engine import load_config
from ..engine.device import choose_device
from ..engine.optimizers.mixed_precision import ONLY_AMP, in_mixed_precision, mixed_parts
from ..engine.screen import logging_from
from ..errors import UserError, describe
from ..task import SEGMENTATION, inner_model, require_task
from ..weights import open_checkpoint
from ..weights.fit import load_checkpoint
from .building import build_untrained
from .samples import random_batch

INFERENCE, TRAINING = 'inference', 'training step'
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        config: Path of a config file.
        checkpoint: Path or URL of weights, or None for random weights. With random weights, a
            detector detects almost nothing, so no masks are computed and pasted.
        cfg_options: Settings that override the config, by dotted names.
        shape: H and W of the images, or None for the typical shape of the task.
        batch_size: Images per step.
        dtype: 'float32', or 'bfloat16' or 'float16' for mixed precision.
        compile: Whether to compile the backbone with torch.compile.
        warm_up: Warm-up steps.
        runs: Measured steps.
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
    """Result of a measurement.

    Attributes:
        phase: INFERENCE, from images in memory to results, or TRAINING, including the optimizer.
        device: Name of the GPU, or the number of CPU threads.
        shape: H and W of the images.
        images_per_second: Over all runs.
        latency_ms: Maps percentile → milliseconds per step.
        peak_memory: Peak bytes of the allocated tensors on a GPU, of the process on a CPU.
        memory_before: Bytes of the process before the model was built; 0 on a GPU.
    """

    phase: str
    device: str
    shape: tuple[int, int]
    images_per_second: float
    latency_ms: dict[int, float]
    peak_memory: int
    memory_before: int


def measure(settings: Settings, phase: str) -> Speed:
    """Measure one phase. Call this in a new process: CPU memory includes earlier peaks.

    Raises:
        UserError: If the settings conflict or do not match this machine, or the model does not run
            on random images.
    """
    device = choose_device()
    if settings.dtype == 'float16' and device == 'cpu':
        raise UserError('--dtype float16 needs a GPU: on a CPU, use bfloat16 or float32')
    memory_before = 0 if device == 'cuda' else peak_process_memory()
    cfg = load_config(settings.config, options=settings.cfg_options)
    task = require_task(cfg)
    height, width = settings.shape or task.timed_shape
    shape = (height, width)
    try:
        with logging_from(logging.WARNING):  # init_weights logs one line per parameter
            seconds = _measure(cfg, settings, phase, shape, device)
    except UserError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f'{phase}: out of GPU memory: use a smaller --batch-size or --shape'
        ) from error
    except Exception as error:
        if 'more than 1 value per channel' in str(error):
            raise UserError(
                '--batch-size 1 cannot be trained: batch norm needs several values per channel, '
                'but a feature map pooled to one pixel has only one per image; use at least 2'
            ) from error
        raise UserError(
            f'{phase}: the model of {settings.config} does not run on random images of '
            f'{shape[0]}×{shape[1]} ({describe(error, 200)}): use a detector, segmentor or '
            'classifier that needs only images, boxes, masks and labels, or a different --shape'
        ) from error
    percentiles = np.percentile(seconds, PERCENTILES)
    cuda = device == 'cuda'
    threads = f'CPU, {torch.get_num_threads()} threads'
    return Speed(
        phase,
        torch.cuda.get_device_name() if cuda else threads,
        shape,
        settings.batch_size * len(seconds) / sum(seconds),
        {p: 1e3 * float(s) for p, s in zip(PERCENTILES, percentiles, strict=True)},
        peak_memory(device),
        memory_before,
    )


def _measure(
    cfg: Config, settings: Settings, phase: str, shape: tuple[int, int], device: str
) -> list[float]:
    """Return the time of each run of a phase in seconds."""
    model = build_model(cfg, settings).to(device)
    batch = random_batch(inner_model(cfg), require_task(cfg), settings.batch_size, shape)
    step = _training_step(model, cfg, settings) if phase == TRAINING else _inference(model)
    return _time(step, batch, settings, device)


def peak_memory(device: str) -> int:
    """Return the peak bytes of the allocated tensors on a GPU, of this process on a CPU."""
    return torch.cuda.max_memory_allocated() if device == 'cuda' else peak_process_memory()


def peak_process_memory() -> int:
    """Return the peak resident memory of this process in bytes (Linux)."""
    # not getrusage's ru_maxrss, which a new process inherits from its parent
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return 1024 * int(line.split()[1])
    raise UserError(
        '/proc/self/status has no VmHWM line: run this on Linux, where memory can be measured'
    )


def build_model(cfg: Config, settings: Settings) -> nn.Module:
    """Build the model, load its checkpoint, and set precision and compilation."""
    model = revert_sync_batchnorm(build_untrained(cfg))
    model.init_weights()
    if settings.checkpoint is not None:
        load_checkpoint(model, open_checkpoint(settings.checkpoint))
    dtype = getattr(torch, settings.dtype)
    if dtype is not torch.float32:
        if require_task(cfg) is SEGMENTATION or dtype is torch.float16:
            model.forward = in_mixed_precision(model, dtype, to_float32=False)
        else:  # like BFloat16OptimWrapper
            for part in mixed_parts(model):
                part.forward = in_mixed_precision(part, dtype)
    if settings.compile:
        if getattr(model, 'backbone', None) is None:
            raise UserError(
                f'--compile needs a model with a backbone, and {type(model).__name__} has none: '
                'run without --compile'
            )
        model.backbone = torch.compile(model.backbone)
    return model


def _inference(model: nn.Module) -> Callable[[dict], Any]:
    model.eval()
    return torch.no_grad()(model.test_step)


def _training_step(model: nn.Module, cfg: Config, settings: Settings) -> Callable[[dict], Any]:
    """Return a training step with the config's optimizer, without gradient accumulation."""
    model.train()
    if not cfg.get('optim_wrapper'):
        raise UserError(
            f'{settings.config} has no optim_wrapper, which the training step needs: use a config '
            'for training'
        )
    dropped = ('type', 'accumulative_counts', *ONLY_AMP)
    wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in dropped}
    if settings.dtype == 'float16':
        wrapper |= dict(type='AmpOptimWrapper', loss_scale='dynamic')
    optim_wrapper = build_optim_wrapper(model, wrapper)
    return functools.partial(model.train_step, optim_wrapper=optim_wrapper)


def _time(step: Callable[[dict], Any], batch: dict, settings: Settings, device: str) -> list[float]:
    """Return the time of each run after the warm-up in seconds."""
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    seconds = []
    for run in range(-settings.warm_up, settings.runs):
        # a step may change its data samples
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
