"""What a training prints on the screen, and what is only in its log file."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import mmengine
from mmengine._strategy import BaseStrategy
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..errors import UserError, describe, one_line, printable
from .wrappers import datasets_of

# environment, config and list of hooks
DUMPING = tuple(str(Path(mmengine.__file__).parent / name) for name in ('runner', '_strategy'))
PER_PARAMETER = 'paramwise_options -- '


def with_short_screen(cls: type[Runner | FlexibleRunner]) -> type[Runner | FlexibleRunner]:
    """Return a subclass of a runner with less on the screen and images named in errors."""
    return type(cls.__name__, (ShortScreen, cls), {'__module__': cls.__module__})


class ShortScreen:
    """Base class of runners, see :func:`with_short_screen`.

    The environment, the config, the list of hooks and lines per parameter are only in the log file.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger; see :meth:`mmengine.runner.Runner.build_logger`."""
        logger = super().build_logger(*args, **kwargs)  # type: ignore[misc]  # of the runner
        keep_dumps_in_file(logger)
        return logger

    def build_strategy(self, *args: Any, **kwargs: Any) -> BaseStrategy:
        """Build the strategy, which builds FlexibleRunner's logger."""
        strategy = super().build_strategy(*args, **kwargs)  # type: ignore[misc]  # of the runner
        keep_dumps_in_file(strategy.logger)
        return strategy

    def wrap_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Wrap the model for several processes; see :meth:`mmengine.runner.Runner.wrap_model`."""
        with warnings.catch_warnings():
            # torch 2.14 warns in every process about an argument that mmengine sets
            warnings.filterwarnings('ignore', '`broadcast_buffers` is deprecated', FutureWarning)
            return super().wrap_model(*args, **kwargs)  # type: ignore[misc]  # of the runner

    def build_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a dataloader whose dataset names images that its pipeline cannot process.

        Raises:
            UserError: If the dataset is empty.
        """
        loader = super().build_dataloader(*args, **kwargs)  # type: ignore[misc]  # of the runner
        require_images(loader.dataset)
        name_failing_images(loader.dataset)
        return loader


@contextlib.contextmanager
def logging_from(level: int) -> Iterator[None]:
    """Hide messages of mmengine's current logger below a level, for example of model building."""
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def keep_dumps_in_file(logger: MMLogger) -> None:
    """Show one line with the path of the log file instead of the dumps that it contains.

    Control characters in messages, such as names in a checkpoint of another user, are escaped.
    """
    logger.addFilter(_escape)
    files = [h.baseFilename for h in logger.handlers if isinstance(h, logging.FileHandler)]
    if not files:
        return  # only the first process has a log file, and the others show errors alone
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_shown)
    logger.info(f'environment, config and hooks: {files[0]}')


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _is_shown(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    dumps = '\n' in message and record.pathname.startswith(DUMPING)
    return record.levelno > logging.INFO or not (dumps or message.startswith(PER_PARAMETER))


def require_images(dataset: object) -> None:
    """Raise a UserError if a dataset is empty."""
    if isinstance(dataset, Sized) and len(dataset) == 0:
        file = getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', '')
        raise UserError(
            f'{type(dataset).__name__} has no images left{f" ({file})" if file else ""}: check '
            'its annotation file, its data_prefix, and filter_cfg, which removes images without '
            'annotations and small images'
        )


def name_failing_images(dataset: object) -> None:
    """Make errors in the pipelines of a dataset name the image and the transform.

    The pipelines are replaced in place, also those of wrapped datasets. A pipeline that is not
    mmengine's Compose is left as it is.
    """
    for each in datasets_of(dataset):
        if type(getattr(each, 'pipeline', None)) is Compose:
            each.pipeline = NamingCompose(each.pipeline.transforms)


class NamingCompose(Compose):
    """mmengine's Compose, whose errors name the image and the transform."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Apply the transforms to one sample.

        Raises:
            UserError: If a transform fails.
        """
        image = _image_of(data)
        for transform in self.transforms:
            try:
                data = transform(data)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                name = type(transform).__name__
                if isinstance(error, ImportError):
                    raise UserError(f'{name} needs a package: {one_line(error)}') from error
                raise UserError(
                    f'{image}: {name} cannot process this image ({describe(error)}): correct the '
                    f'image, its annotations or the settings of {name} in the pipeline, or '
                    'remove the image'
                ) from error
            if data is None:
                return None
        return data


def _image_of(data: Any) -> str:
    if isinstance(data, dict):
        for key in ('img_path', 'filename', 'img_id', 'sample_idx'):
            if key in data:
                return str(data[key]) if key in ('img_path', 'filename') else f'{key} {data[key]}'
    return 'a sample'
