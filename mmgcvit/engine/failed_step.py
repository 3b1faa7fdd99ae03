"""Files that hold one training step with a bad loss or an error, for ``tools/replay.py``."""

import io
import random
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from ..cli import as_commands
from ..errors import UserError, describe
from ..files import write_atomically
from ..weights import read_checkpoint
from .kinds import mismatch
from .plain_data import to_plain
from .wrappers import unwrapped

# versions that can change what a step computes
_PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
    'mmgcvit',
)
_Result = TypeVar('_Result')
Reason = Literal['loss', 'gradients', 'error']


class Image(TypedDict):
    """An image of a batch, with None for what its sample does not contain."""

    img_path: Any
    img_id: Any


class RandomStateOfCPU(TypedDict):
    """States of the random generators of the CPU; see :func:`random_state`."""

    python: tuple[int, tuple[int, ...], float | None]
    numpy: tuple[str, np.ndarray, int, int, float]
    torch: Tensor


class RandomState(RandomStateOfCPU, total=False):
    """States of random generators, on CUDA with the state of the current GPU."""

    cuda: Tensor


class CustomImports(TypedDict, total=False):
    """The setting ``custom_imports`` of a config."""

    imports: str | list[str] | None


class ConfigOfModel(TypedDict):
    """The part of a config that must be present."""

    model: dict[str, Any]


class ReplayedConfig(ConfigOfModel, total=False):
    """The parts of a config that a step depends on."""

    data_preprocessor: dict[str, Any] | None
    optim_wrapper: dict[str, Any] | None
    default_scope: str | None
    sync_bn: str | None
    custom_imports: CustomImports | None


class FailedStep(TypedDict):
    """Content of a file, as plain data.

    ``error`` is a traceback. ``losses``, ``weights`` and ``loss_scaler`` are None if they could not
    be read after the error, or if there are none.
    """

    reason: Reason
    error_type: str | None
    error: str | None
    iteration: int
    rank: int
    processes: int
    images: list[Image]
    losses: dict[str, float] | None
    batch: dict | list | tuple
    random_state: RandomState
    weights: dict[str, Any] | None
    weights_changed: bool
    loss_scaler: dict[str, Any] | None
    config: ReplayedConfig
    versions: dict[str, str]


def random_state() -> RandomState:
    """Return the states of the random generators of Python, NumPy and torch.

    On CUDA, this includes the generator of the current GPU. It does not wait for the GPU.
    """
    state: RandomState = {
        'python': random.getstate(),
        'numpy': np.random.get_state(),  # type: ignore[typeddict-item]  # a tuple by default
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: RandomState) -> None:
    """Set the states from :func:`random_state`."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


@dataclass
class Step:
    """A training step.

    Attributes:
        iteration: Number of the iteration, counted from 1.
        batch: Batch of the data loader.
        random_state: See :func:`random_state`, before the step.
        losses: Losses by name, 0-dim tensors, once they are computed.
    """

    iteration: int
    batch: Any
    random_state: RandomState
    losses: dict[str, Tensor] = field(default_factory=dict)


def images_of(batch: Any) -> list[Image]:
    """Return the path and the id of each image of a batch, None where a sample has none."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return [
        Image(img_path=getattr(sample, 'img_path', None), img_id=getattr(sample, 'img_id', None))
        for sample in (samples if isinstance(samples, list | tuple) else ())
    ]


def versions() -> dict[str, str]:
    """Return the versions of Python, the libraries that are imported, CUDA and the GPU."""
    found = {'python': sys.version.split()[0]}
    for name in _PACKAGES:
        if version := getattr(sys.modules.get(name), '__version__', None):
            found[name] = str(version)
    if torch.cuda.is_available():
        found['cuda'] = str(torch.version.cuda)
        found['gpu'] = torch.cuda.get_device_name()
    return found


def write_failed_step(
    runner: Runner | FlexibleRunner,
    step: Step,
    reason: Reason,
    error: BaseException | None = None,
    weights_changed: bool = False,
) -> str:
    """Write ``WORK_DIR/failed_step_iter_N.pth``, with the rank in its name for several processes.

    What cannot be read any more, for example after an error of the GPU, is left out. An error of
    the disk is part of the returned text.

    Args:
        runner: Runner of the training.
        step: The step.
        reason: Why the step failed: 'loss', 'gradients' or 'error'.
        error: The exception, if the reason is 'error'.
        weights_changed: Whether the weights may have been updated since the step.

    Returns:
        One line for the user: the file and the command that runs the step again.
    """
    rank = f'_rank_{get_rank()}' if get_world_size() > 1 else ''
    path = Path(runner.work_dir, f'failed_step_iter_{step.iteration}{rank}.pth')
    try:
        buffer = io.BytesIO()
        torch.save(_content(runner, step, reason, error, weights_changed), buffer)
        write_atomically(path, buffer.getvalue())
    except Exception as problem:  # whatever it is, the error of the step matters more
        return f'the failed step could not be written to {path} ({describe(problem)})'
    # no warning about imports: the reader of this line has just run the config
    options = ' --allow-imports' if runner.cfg.get('custom_imports') else ''
    command = as_commands(f'python tools/replay.py {shlex.quote(str(path))}{options}')
    return f'the failed step is in {path}; run it again with: {command}'


def _content(
    runner: Runner | FlexibleRunner,
    step: Step,
    reason: Reason,
    error: BaseException | None,
    weights_changed: bool,
) -> FailedStep:
    text = ''.join(traceback.format_exception(error))[-20000:] if error else None
    return {
        'reason': reason,
        'error_type': type(error).__name__ if error else None,
        'error': text,
        'iteration': step.iteration,
        'rank': get_rank(),
        'processes': get_world_size(),
        'images': to_plain(images_of(step.batch)),
        'losses': _unless_it_fails(lambda: {k: v.item() for k, v in step.losses.items()}),
        # a file without it counts as damaged
        'batch': _unless_it_fails(lambda: to_plain(step.batch)),  # type: ignore[typeddict-item]
        'random_state': step.random_state,
        'weights': _unless_it_fails(lambda: _weights(runner.model)),
        'weights_changed': weights_changed,
        'loss_scaler': _unless_it_fails(lambda: runner.optim_wrapper.loss_scaler.state_dict()),
        'config': to_plain(runner.cfg.to_dict()),
        'versions': _unless_it_fails(versions) or {},
    }


def _weights(model: torch.nn.Module) -> dict[str, Tensor] | None:
    if isinstance(model, FullyShardedDataParallel):
        return None  # to gather the shards needs all processes
    return to_plain(unwrapped(model).state_dict())


def _unless_it_fails(read: Callable[[], _Result]) -> _Result | None:
    try:
        return read()
    except Exception:  # the GPU may be out of memory or unusable after an error
        return None


def read_failed_step(path: str | Path) -> FailedStep:
    """Read a file of :func:`write_failed_step` without executing any code in it.

    Raises:
        UserError: If the file is damaged, could execute code, or is not such a file.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or content.keys().isdisjoint({'reason', 'random_state'}):
        raise UserError(
            f'{path} does not hold a failed step: pass a file failed_step_iter_N.pth, which '
            'tools/train.py writes to the work dir'
        )
    if damage := mismatch(content, FailedStep, ''):
        raise damaged(path, damage)
    return cast(FailedStep, content)


def damaged(path: str | Path, damage: str) -> UserError:
    """Return the error for a file whose content does not have the form of :class:`FailedStep`."""
    return UserError(
        f'{path}: the failed step is damaged ({damage}), or the training could not write all of it '
        'after its error: copy the file again, or run the training again to write a new one'
    )
