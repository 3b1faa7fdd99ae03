"""Seconds per iteration of each backbone, measured in turn on the same batches.

The trainings may run on a busy machine, one today and one tomorrow: their own times cannot be
compared.
"""

import contextlib
import copy
import datetime
import functools
import io
import json
import logging
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from ...engine.device import choose_device
from ...engine.screen import logging_from
from ...files import write_atomically
from ...progress import duration, time_left
from ..building import build_untrained

WARM_UP = 3  # rounds that are not counted
FILE = 'timing.json'


def measure_times(
    configs: Mapping[tuple[str, str], Config], out: Path, rounds: int
) -> dict[str, dict[str, Any]]:
    """Measure the times of some tasks and add them to ``timing.json``.

    Each round loads a batch of training images, on which each backbone's network is trained for one
    step, with its losses and optimizer. A backbone's time per iteration is the median of its steps
    plus the median time of loading. Validations are not part of it.

    Args:
        configs: Config of each task and backbone.
        out: Folder of the comparison.
        rounds: Number of rounds that count, at least 2.

    Returns:
        For each measured task, a dict with ``seconds``, which maps backbone → seconds per
        iteration, ``quartiles``, the first and third of the steps, and a description of the machine
        and the software.
    """
    timing = read_times(out)
    for task in dict.fromkeys(task for task, _ in configs):
        networks = {name: cfg for (of, name), cfg in configs.items() if of == task}
        loading, steps = _measure(task, networks, rounds)
        timing[task] = {
            'seconds': {name: median(loading) + median(times) for name, times in steps.items()},
            'quartiles': {name: quantiles(times, n=4)[::2] for name, times in steps.items()},
            'loading': median(loading),
            'rounds': rounds,
            'date': datetime.date.today().isoformat(),
            'device': _device(),
            'threads': torch.get_num_threads(),
            'versions': {'torch': torch.__version__, 'mmengine': mmengine.__version__},
        }
        write_atomically(out / FILE, json.dumps(timing, indent=1).encode())
    return timing


def read_times(out: Path) -> dict[str, dict[str, Any]]:
    """Return what :func:`measure_times` has measured so far."""
    return json.loads((out / FILE).read_text()) if (out / FILE).is_file() else {}


def _measure(
    task: str, configs: Mapping[str, Config], rounds: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Return the seconds of loading and of each backbone's training steps, by round."""
    device = choose_device()
    steps = {}
    for name, cfg in configs.items():
        torch.manual_seed(0)
        with logging_from(logging.WARNING):  # init_weights logs several lines per parameter
            model = revert_sync_batchnorm(build_untrained(cfg))
            model.init_weights()
        model.to(device).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        steps[name] = functools.partial(model.train_step, optim_wrapper=wrapper)
    # the pipelines and the order of images are the same for all backbones
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        batches = iter(Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0))
    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    loading: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.monotonic()
    for number in range(-WARM_UP, rounds):
        start = time.perf_counter()
        batch = next(batches)
        loading.append(time.perf_counter() - start)
        for name, step in steps.items():
            data = copy.deepcopy(batch)  # a step may change its data samples
            wait()
            start = time.perf_counter()
            step(data)
            wait()
            seconds[name].append(time.perf_counter() - start)
        done = number + WARM_UP + 1
        left = time_left(begin, done, WARM_UP + rounds)
        if done % 5 == 0 or number == rounds - 1:
            print(
                f'seconds per iteration, {task}: round {done} of {WARM_UP + rounds}, '
                f'about {duration(left)} left',
                flush=True,
            )
    return loading[WARM_UP:], {name: values[WARM_UP:] for name, values in seconds.items()}


def _device() -> str:
    """Return the name of the GPU or CPU."""
    if choose_device() == 'cuda':
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    names = [
        line.partition(':')[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else ())
        if line.startswith('model name')
    ]
    return names[0] if names else platform.processor() or platform.machine()
