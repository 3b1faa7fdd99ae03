"""Saving a checkpoint when the system asks the training to end, as Slurm does before preemption."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...registry import HOOKS
from ..launch import end_processes
from ..reduced_flags import ReducedFlags
from ..workers import gives_way, ignore_sigterm_of_others, sigterm_blocked
from .checkpoint import SafeCheckpointHook

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
REPEATED = 5.0  # seconds in which a launcher may forward a signal that its processes received too


@HOOKS.register_module()
class StopOnSigtermHook(Hook):
    """Save a checkpoint and exit with code 75 when the training receives SIGTERM.

    Slurm and other schedulers send this signal before they end a job. All processes end after the
    same iteration, the next one that updates the weights. During a validation they end at once if
    the weights that are validated are saved, and a resumed training repeats the validation. A
    second SIGTERM ends a process at once.

    This hook has no effect without :class:`SafeCheckpointHook`, or if the program handles the
    signal itself.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self) -> None:
        self._checkpoints: SafeCheckpointHook | None = None
        self._flags: ReducedFlags | None = None
        self._received: float | None = None
        self._stopping = False
        self._validating = False
        self._saved = False  # the weights that are validated
        self._blocked = contextlib.ExitStack()
        self._iteration = 0
        self._resumes_with = ''

    @property
    def received(self) -> bool:
        """Whether this process has received SIGTERM."""
        return self._received is not None

    def before_train(self, runner: Runner) -> None:
        self._install(runner)

    def before_val(self, runner: Runner) -> None:
        self._install(runner)  # SafeCheckpointHook may repeat a validation before the training
        self._iteration = runner.iter
        self._validating = self._flags is not None
        checkpoints = self._checkpoints  # None without flags
        self._saved = checkpoints is not None and checkpoints.is_saved(runner)
        self._resumes_with = checkpoints.resumes_with(runner) if checkpoints and self._saved else ''
        if self._saved and self._received is not None:
            self._leave_validation()

    def before_val_epoch(self, runner: Runner) -> None:
        if self._validating:
            self._blocked.enter_context(sigterm_blocked())  # while workers start

    def before_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._blocked.close()

    def after_val(self, runner: Runner) -> None:
        self._blocked.close()
        self._validating = False

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        if self._flags is None:
            return
        received = self._flags.exchange(self._received is not None)
        self._stopping = self._stopping or bool(received and received[0])
        wrapper = runner.optim_wrapper
        # checkpoints do not contain accumulated gradients
        if not self._stopping or (
            isinstance(wrapper, OptimWrapper) and not wrapper.should_update()
        ):
            return
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            if batch_idx + 1 < len(runner.train_loop.dataloader):
                self._stop(runner, runner.epoch, runner.iter + 1)
        else:
            self._stop(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._stopping and isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._stop(runner, runner.epoch + 1, runner.iter)

    def after_train(self, runner: Runner) -> None:
        if self._flags is not None and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _install(self, runner: Runner) -> None:
        checkpoints = next((h for h in runner.hooks if isinstance(h, SafeCheckpointHook)), None)
        if self._flags is not None or checkpoints is None or not checkpoints.is_training:
            return
        handler = signal.getsignal(signal.SIGTERM)
        # a training that failed earlier in this process leaves its handler
        is_own = isinstance(getattr(handler, '__self__', None), StopOnSigtermHook)
        is_free = is_own or handler is signal.SIG_DFL or gives_way(handler)
        if not is_free or threading.current_thread() is not threading.main_thread():
            return
        self._checkpoints = checkpoints
        self._flags = ReducedFlags(next(runner.model.parameters()).device)
        if runner.val_loop is not None:  # ExactResumeHook prepares the training's workers
            loader = runner.val_loop.dataloader
            loader.worker_init_fn = partial(_init_worker, before=loader.worker_init_fn)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is not None and now - self._received > REPEATED:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if self._received is None:
            self._received = now
        if self._validating and self._saved:
            self._leave_validation()

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> NoReturn:
        assert self._checkpoints is not None  # of _install
        self._checkpoints.save_now(runner, epoch, iteration)
        # srun sends it to the other processes when the first one has ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_main_process():
            print_log(
                f'stopped by SIGTERM after iteration {iteration}; --resume continues',
                'current',
                logging.WARNING,
            )
        runner.visualizer.close()
        if is_distributed():
            end_processes()
        sys.exit(EXIT_CODE)

    def _leave_validation(self) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_main_process():
            print_log(
                f'stopped by SIGTERM in the validation after iteration {self._iteration}. '
                f'{self._resumes_with}',
                'current',
                logging.WARNING,
            )
        if is_distributed():
            # the others may be in a collective operation, so the group cannot be destroyed
            logging.shutdown()
            sys.stdout.flush()
            os._exit(EXIT_CODE)
        sys.exit(EXIT_CODE)


def _init_worker(worker: int, before: Callable[[int], None] | None) -> None:
    ignore_sigterm_of_others()
    if before is not None:
        before(worker)
