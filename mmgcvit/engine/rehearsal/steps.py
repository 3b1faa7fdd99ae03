"""A hook that shortens a training to a few iterations and measures them."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..hooks import ExactResumeHook
from .validation import require_names


class FewSteps(Hook):
    """Stop a training after a few iterations, with a checkpoint and without a validation.

    The loop, its length and the schedules are those of the training.

    Args:
        batches: Iterations to train, at most.

    Attributes:
        batches: Iterations to train, fewer than the argument if an iteration-based training ends
            before.
        started: Whether the training began.
        start: Iterations that were done before.
        losses: Loss of each iteration.
        times: When the training began and when each iteration ended, in seconds.
        validation_times: When the validation began and when each of its batches ended, in seconds.
    """

    priority = 'VERY_HIGH'

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.started = False
        self.start = 0
        self.losses: list[float] = []
        self.times: list[float] = []
        self.validation_times: list[float] = []

    def before_train(self, runner: Runner) -> None:
        """Shorten the training."""
        self.started, self.start = True, runner.iter
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and runner.iter < loop.max_iters:
            self.batches = min(self.batches, loop.max_iters - runner.iter)
        loop.val_begin = sys.maxsize
        # EarlyStoppingHook may have stopped it before
        loop.stop_training = loop.stop_training or self.batches == 0
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                hook.interval = 1 if hook.by_epoch else runner.iter + max(self.batches, 1)
                hook.save_begin = 0
            elif isinstance(hook, ExactResumeHook):
                # a checkpoint of SIGTERM is in the middle of an epoch, which has few items here
                hook.load_state_dict(hook.state_dict() | {'batches': 0, 'images': 0})
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._note(self.times)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Measure an iteration, and stop after the last one."""
        self._note(self.times)
        if outputs is not None and 'loss' in outputs:
            self.losses.append(outputs['loss'].item())
        if len(self.times) > self.batches:
            runner.train_loop.stop_training = True

    def before_val_epoch(self, runner: Runner) -> None:
        """Note when the validation begins."""
        self._note(self.validation_times)

    def after_val_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        """Measure a batch of the validation."""
        self._note(self.validation_times)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Check the names of the metrics, before another hook misses one."""
        if metrics:
            require_names(runner, metrics)

    def _note(self, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
