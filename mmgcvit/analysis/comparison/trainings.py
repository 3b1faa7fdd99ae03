"""The trainings of a comparison, one after the other, with the remaining time of all."""

import contextlib
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...engine import build_runner, find_checkpoint, record_failed_step, require_data
from ...errors import UserError
from ...files import write_atomically
from ...progress import duration
from ...visualization import TrainingLog, read_training_log
from .plan import METRICS, Plan, Training, require_same_config


def train_all(plan: Plan, configs: Mapping[tuple[str, str], Config]) -> None:
    """Train whatever is not finished, and continue what was interrupted.

    Each training is one of ``tools/train.py CONFIG --resume``, in this process.

    Args:
        plan: The trainings.
        configs: Its configs, see :meth:`.Plan.configs`.

    Raises:
        UserError: If a training began with other settings, or the data are missing.
    """
    trainings = {}
    for training in plan.trainings():
        cfg = config_of(training, configs)
        if has_begun(training):
            require_same_config(training, cfg)
        trainings[training] = cfg
    left = {t: cfg for t, cfg in trainings.items() if not is_finished(t, cfg.train_cfg.max_iters)}
    if done := len(trainings) - len(left):
        print(f'{done} of {len(trainings)} trainings are finished already', flush=True)
    remaining = RemainingTime([(t.task, cfg.train_cfg.max_iters) for t, cfg in left.items()])
    for number, (training, cfg) in enumerate(left.items(), done + 1):
        print(f'\n[{number}/{len(trainings)}] {training}; all trainings: {remaining}', flush=True)
        write_atomically(training.config, cfg.pretty_text.encode())
        cfg.work_dir = str(training.work_dir)
        cfg.resume = 'auto'
        cfg.runner_type = 'mmgcvit.BriefRunner'
        # mmdet's and mmseg's configs have one name for all: the second training would log to the
        # first one's folder
        cfg.visualizer.pop('name', None)
        runner = build_runner(cfg)
        require_data(cfg)
        hook = _ShowRemainingTime(remaining, training.task, sys.stdout)
        runner.register_hook(hook, priority='LOWEST')
        with record_failed_step(runner):
            runner.train()
        if not is_finished(training, cfg.train_cfg.max_iters):
            raise UserError(
                f'{training} detects nothing after its last iteration, so there is no AP: use '
                f'more --iterations and another --out; see {runner.log_dir}'
            )


def config_of(training: Training, configs: Mapping[tuple[str, str], Config]) -> Config:
    """Return the config of a training, without its work dir."""
    cfg = copy.deepcopy(configs[training.task, training.backbone])
    cfg.randomness.seed = training.seed
    return cfg


def has_begun(training: Training) -> bool:
    """Whether there is anything of a training that would be continued or used."""
    begun = read_log(training).metrics or find_checkpoint(training.work_dir)
    return training.config.is_file() and bool(begun)


def is_finished(training: Training, iterations: int) -> bool:
    """Whether a training has been validated after its last iteration."""
    metric = METRICS[training.task][0]
    return iterations in read_log(training).metrics.get(metric.key, {})


def read_log(training: Training) -> TrainingLog:
    """Return the log of a training; it is empty if nothing has been logged yet."""
    # killed before its first record
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_training_log(training.work_dir)
    return TrainingLog(training.work_dir.name)


class RemainingTime:
    """Estimate of the time that all trainings still take, from the iterations so far.

    Args:
        trainings: Task and number of iterations of each training.
    """

    def __init__(self, trainings: Sequence[tuple[str, int]]) -> None:
        self._left = dict.fromkeys((task for task, _ in trainings), 0)
        for task, iterations in trainings:
            self._left[task] += iterations
        self._done = dict.fromkeys(self._left, 0)
        self._seconds = dict.fromkeys(self._left, 0.0)

    def skip(self, task: str, iterations: int) -> None:
        """Count iterations of a resumed training that an earlier process has done."""
        self._left[task] -= iterations

    def add(self, task: str, iterations: int, seconds: float) -> None:
        """Count iterations and the time that they took, including their validation."""
        self._left[task] -= iterations
        self._done[task] += iterations
        self._seconds[task] += seconds

    def seconds(self) -> float | None:
        """Return the remaining seconds, or None before the first iterations."""
        if not any(self._done.values()):
            return None
        mean = sum(self._seconds.values()) / sum(self._done.values())
        return sum(
            left * (self._seconds[task] / self._done[task] if self._done[task] else mean)
            for task, left in self._left.items()
        )

    def __str__(self) -> str:
        seconds = self.seconds()
        if seconds is None:
            return 'remaining time not known yet'
        return f'about {duration(seconds)} left'


class _ShowRemainingTime(Hook):
    """Print the remaining time of all trainings after each validation.

    Args:
        remaining: Estimate for all trainings.
        task: Task of the current training.
        screen: Stream to print to; during a training, BriefRunner redirects ``sys.stdout``.
    """

    def __init__(self, remaining: RemainingTime, task: str, screen: TextIO) -> None:
        self._remaining, self._task, self._screen = remaining, task, screen
        self._iteration = 0
        self._start: float | None = None

    def before_train(self, runner: Runner) -> None:
        self._iteration, self._start = runner.iter, time.monotonic()
        self._remaining.skip(self._task, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._start is None:  # CheckpointHook repeats a validation before the training
            return
        now = time.monotonic()
        self._remaining.add(self._task, runner.iter - self._iteration, now - self._start)
        self._iteration, self._start = runner.iter, now
        print(f'all trainings: {self._remaining}', file=self._screen, flush=True)
