"""A runner for interactive use: progress on the screen, details in the log file."""

import contextlib
import datetime
import io
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mmengine.dist import master_only
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..registry import RUNNERS

DETECTION = {'coco/bbox_mAP': 'box', 'coco/segm_mAP': 'mask'}


@RUNNERS.register_module()
class BriefRunner(Runner):
    """mmengine's Runner with short output on the screen and the full output in the log file.

    The screen shows warnings, progress with loss and remaining time, and one line of metrics per
    validation. The environment, the config, the list of hooks, tables of metrics and the output of
    libraries are only in the log file. Any config can use it::

        python tools/train.py CONFIG --cfg-options runner_type=mmgcvit.BriefRunner
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; see :meth:`mmengine.runner.Runner.build_logger`."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.addFilter(_is_no_deprecation)
        return logger

    def register_hooks(
        self,
        default_hooks: dict[str, Hook | dict] | None = None,
        custom_hooks: list[Hook | dict] | None = None,
    ) -> None:
        """Register the config's hooks and ProgressHook."""
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(ProgressHook(sys.stdout), priority='LOWEST')

    def train(self) -> nn.Module:
        """Train; see :meth:`mmengine.runner.Runner.train`."""
        with contextlib.redirect_stdout(_PrintsToLog(self.logger)):
            return super().train()

    def val(self) -> dict[str, float]:
        """Validate; see :meth:`mmengine.runner.Runner.val`."""
        with contextlib.redirect_stdout(_PrintsToLog(self.logger)):
            return super().val()

    def test(self) -> dict[str, float]:
        """Test; see :meth:`mmengine.runner.Runner.test`."""
        with contextlib.redirect_stdout(_PrintsToLog(self.logger)):
            return super().test()


class ProgressHook(Hook):
    """Print one short line whenever mmengine's LoggerHook logs a long one.

    Args:
        screen: Stream to print to.
    """

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Print the path of the log file."""
        log = Path(runner.log_dir, f'{runner.timestamp}.log')
        self._write(f'config, environment and details: {log}')

    @master_only
    def after_train_iter(self, runner: Runner, batch_idx: int, *_: object, **__: object) -> None:
        """Print epoch, iteration, mean loss and remaining time."""
        interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), 10)
        if not self.every_n_inner_iters(batch_idx, interval):
            return
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            length = len(runner.train_dataloader)
            done = f'Epoch(train) [{runner.epoch + 1}][{batch_idx + 1:{len(str(length))}}/{length}]'
        else:
            length = runner.max_iters
            done = f'Iter(train) [{runner.iter + 1:{len(str(length))}}/{length}]'
        loss = runner.message_hub.get_scalar('train/loss').mean(interval)
        left = datetime.timedelta(seconds=int(runner.message_hub.get_info('eta')))
        self._write(f'{done}  loss: {loss:.3f}  eta: {left}')

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Print the metrics: AP and AP50 of boxes and masks for COCO, all metrics otherwise."""
        self._write(f'validation  {_in_one_line(metrics or {})}')

    def _write(self, line: str) -> None:
        print(line, file=self._screen, flush=True)


def _in_one_line(metrics: Mapping[str, float]) -> str:
    detection = [
        f'{name} AP {metrics[key]:.3f}, AP50 {metrics[f"{key}_50"]:.3f}'
        for key, name in DETECTION.items()
        if f'{key}_50' in metrics
    ]
    others = [f'{key}: {value:.3f}' for key, value in metrics.items()]
    return '; '.join(detection) or '  '.join(others) or 'no detections yet'


def _is_no_deprecation(record: logging.LogRecord) -> bool:
    """Filter out deprecation warnings of libraries, which users cannot fix."""
    return 'deprecated' not in record.getMessage()


class _PrintsToLog(io.TextIOBase):
    """Stream that logs the output of libraries such as pycocotools."""

    def __init__(self, logger: MMLogger) -> None:
        self._logger = logger

    def write(self, text: str) -> int:
        if text.strip():
            self._logger.info(text.rstrip())
        return len(text)
