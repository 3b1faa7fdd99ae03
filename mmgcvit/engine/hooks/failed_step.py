"""Recording of training steps that fail."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from ..failed_step import Step, random_state, write_failed_step
from .checkpoint import SafeCheckpointHook


class HoldStepHook(Hook):
    """Hold the batch and the random state of the current step, for a file if the step fails.

    The batch is held, not copied. A data preprocessor that changes its input in place changes what
    is written.

    Attributes:
        step: The current step of a training, None before the first one.
    """

    step: Step | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Hold what the next step begins with."""
        self.step = Step(runner.iter + 1, data_batch, random_state())

    def after_train(self, runner: Runner) -> None:
        """Release the last batch."""
        self.step = None


@contextmanager
def record_failed_step(runner: Runner | FlexibleRunner) -> Iterator[None]:
    """Write a file if a training step raises an exception in this context.

    mmengine calls no hook then. The exception is raised unchanged. After Ctrl-C, a line in the log
    states where ``--resume`` continues. Errors outside of a step, for
    example of a hook or the data loader, write no file. Neither does a step that failed because
    another process of the training ended.

    Raises:
        UserError: If a validation raises an exception. The message includes what the next
            ``--resume`` does.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (checkpoints := _checkpoint_hook(runner)) and is_main_process():
            line = f'interrupted after iteration {runner.iter}. {checkpoints.last_saved()}'
            print_log(line, logger='current', level=logging.WARNING)
        raise
    except Exception as error:
        steps = (hook.step for hook in runner.hooks if isinstance(hook, HoldStepHook))
        step = next(steps, None)
        if step is not None and _raised_in_step(error) and not _lost_connection(error):
            line = write_failed_step(runner, step, 'error', error)
            if is_main_process():
                print_log(line, logger='current', level=logging.WARNING)
            else:  # whose logger prints only errors, with the place in the code
                print(line, file=sys.stderr, flush=True)
        checkpoints = _checkpoint_hook(runner)
        if checkpoints and _raised_in_validation(error, runner) and not _lost_connection(error):
            raise checkpoints.failed_validation(runner, error) from error
        raise


def _checkpoint_hook(runner: Runner | FlexibleRunner) -> SafeCheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)), None)


def _raised_in_step(error: BaseException) -> bool:
    return any(
        frame.f_code.co_name == 'train_step' for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _raised_in_validation(error: BaseException, runner: Runner | FlexibleRunner) -> bool:
    return runner._val_loop is not None and any(
        frame.f_locals.get('self') is runner._val_loop
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _lost_connection(error: BaseException) -> bool:
    # gloo raises a plain RuntimeError
    return isinstance(error, torch.distributed.DistBackendError) or (
        type(error) is RuntimeError
        and any(text in str(error) for text in ('gloo', 'Connection closed by peer', 'NCCL'))
    )
