"""Mixed precision where torch's usual kind does not work: on a CPU, and in bfloat16 for detectors.

mmengine's ``AmpOptimWrapper`` refuses a CPU. Detectors round their boxes to the features' type, and
bfloat16 has steps of 4 pixels at 1000: features are handed to the heads in float32.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from ..mmcv_ops import operator_failure
from ..registry import OPTIM_WRAPPERS
from .config import is_segmentor
from .tool import ToolError

PARTS = ('backbone', 'neck')
ONLY_AMP = ('loss_scale', 'dtype', 'use_fsdp')  # arguments that AmpOptimWrapper adds


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Computes in bfloat16 during training, by autocast; heads get their features in float32.

    Heads compute in float32 if mmcv's operators do not run in bfloat16, as compiled ones on a CPU.
    Weights, gradients and the optimizer's state stay float32. bfloat16 has float32's range, so
    that the loss needs no scaling. Arguments: as of mmengine's ``OptimWrapper``.
    """

    def __init__(
        self, optimizer: Optimizer, accumulative_counts: int = 1, clip_grad: dict | None = None
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        self._device = optimizer.param_groups[0]['params'][0].device
        failure = operator_failure(str(self._device), torch.bfloat16)
        self._heads_too = failure is None
        heads = (
            'heads too' if self._heads_too else f"heads in float32 (mmcv's operators: {failure})"
        )
        print_log(
            f'mixed precision: backbone and neck compute in bfloat16, {heads}', logger='current'
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        parts = mixed_parts(model.module if is_model_wrapper(model) else model)
        for part in parts:
            part.forward = in_mixed_precision(part, torch.bfloat16)
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._heads_too)
        try:
            with autocast, super().optim_context(model):
                yield
        finally:
            for part in parts:
                del part.forward  # the class's own is found again


def mixed_parts(model: nn.Module) -> list[nn.Module]:
    """Return backbone and neck of a model, as far as it has them."""
    parts = [getattr(model, name) for name in PARTS if getattr(model, name, None) is not None]
    if not parts:
        raise ToolError(
            f'mixed precision in bfloat16 is for models with a backbone, {type(model).__name__} '
            'has none: train without --amp, with optim_wrapper.type=OptimWrapper'
        )
    return parts


def in_mixed_precision(
    module: nn.Module, dtype: torch.dtype, to_float32: bool = True
) -> Callable[..., Any]:
    """Return a module's forward in mixed precision, which gives float32 if asked to."""
    forward = module.forward

    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_of(module), dtype=dtype):
            outputs = forward(*args, **kwargs)
        return _as_float32(outputs) if to_float32 else outputs

    return wrapped


def _device_of(part: nn.Module) -> str:
    return next(part.parameters()).device.type


def _as_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_as_float32(output) for output in outputs)


def request_amp(cfg: Config) -> None:
    """Make a config train in mixed precision, as ``--amp`` asks; its other settings are kept."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif wrapper.type != 'AmpOptimWrapper':
        raise ToolError(
            f'--amp is for a config with optim_wrapper.type OptimWrapper or AmpOptimWrapper, this '
            f'one has {wrapper.type}'
        )


def settle_amp(cfg: Config, device: str) -> None:
    """Replace AmpOptimWrapper by ``BFloat16OptimWrapper`` where the former does not work.

    On a CPU that is always, whichever dtype is asked for; on CUDA for detectors in bfloat16.
    """
    wrapper = cfg.get('optim_wrapper')
    if not wrapper or wrapper.get('type') != 'AmpOptimWrapper':
        return
    in_bfloat16 = wrapper.get('dtype') in ('bfloat16', torch.bfloat16)
    if device == 'cpu' or (in_bfloat16 and not is_segmentor(cfg)):
        for name in ONLY_AMP:
            wrapper.pop(name, None)
        wrapper.type = 'mmgcvit.BFloat16OptimWrapper'
