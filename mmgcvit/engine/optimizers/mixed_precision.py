"""Mixed precision where ``AmpOptimWrapper`` does not work: on a CPU, and for detectors in bfloat16.

mmengine's ``AmpOptimWrapper`` does not support CPUs. On a GPU it runs the complete model under
autocast, and mmdet computes boxes in the dtype of the layers' outputs. Near 1000, bfloat16 has a
resolution of 4 pixels. Here only layers compute in bfloat16: anchors, boxes, NMS, RoIAlign and
losses stay in float32.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import UserError
from ...registry import OPTIM_WRAPPERS
from ..wrappers import unwrapped

ONLY_AMP = ('loss_scale', 'dtype', 'use_fsdp')  # arguments of AmpOptimWrapper only


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Train with layers in bfloat16 and everything else in float32.

    The layers of the backbone and neck, and of the heads of two-stage detectors, compute in
    bfloat16. Other heads compute coordinates between their layers and stay in float32. Weights,
    gradients and the optimizer's state are float32. The loss is not scaled, because bfloat16 has
    the range of float32. On a CPU without instructions for bfloat16, everything is in float32.

    Args:
        optimizer: See mmengine's ``OptimWrapper``.
        accumulative_counts: See mmengine's ``OptimWrapper``.
        clip_grad: See mmengine's ``OptimWrapper``.
    """

    def __init__(
        self, optimizer: Optimizer, accumulative_counts: int = 1, clip_grad: dict | None = None
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        self._is_mixed = has_bfloat16(optimizer.param_groups[0]['params'][0].device.type)
        print_log(
            'mixed precision: layers of backbone, neck and two-stage heads in bfloat16, everything '
            'else in float32'
            if self._is_mixed
            else 'mixed precision: this CPU has no instructions for bfloat16, so everything is in '
            'float32',
            logger='current',
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the model's layers in bfloat16 within this context.

        Raises:
            UserError: If the model has no backbone.
        """
        parts = mixed_parts(unwrapped(model))
        if not self._is_mixed:
            parts = []
        for part in parts:
            part.forward = in_mixed_precision(part, torch.bfloat16)
        try:
            with super().optim_context(model):
                yield
        finally:
            for part in parts:
                del part.forward  # restores the method of the class


def has_bfloat16(device: str) -> bool:
    """Return whether a type of device, such as 'cpu', has instructions for bfloat16.

    On a CPU without AVX-512, a convolution in bfloat16 can take 250 times as long as in float32.
    """
    try:
        return device != 'cpu' or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:  # a build of PyTorch without oneDNN
        return True


def mixed_parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model whose layers compute in bfloat16.

    Raises:
        UserError: If the model has no backbone.
    """
    if getattr(model, 'backbone', None) is None:
        raise UserError(
            'mixed precision in bfloat16 needs a model with a backbone, and '
            f'{type(model).__name__} has none: train without --amp, with '
            'optim_wrapper.type=OptimWrapper'
        )
    roi_head = getattr(model, 'roi_head', None)
    parts = [getattr(model, name, None) for name in ('backbone', 'neck', 'rpn_head')]
    parts += [getattr(roi_head, name, None) for name in ('bbox_head', 'mask_head')]
    stages = [part if isinstance(part, nn.ModuleList) else [part] for part in parts]
    parts = [part for stage in stages for part in stage if part is not None]
    # the neck of a classifier only pools and has no parameters
    return [part for part in parts if next(part.parameters(), None) is not None]


def in_mixed_precision(
    module: nn.Module, dtype: torch.dtype, to_float32: bool = True
) -> Callable[..., Any]:
    """Return a module's ``forward`` in mixed precision.

    Args:
        module: Module with parameters.
        dtype: Data type of the layers.
        to_float32: Whether outputs are converted to float32.
    """
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
    if isinstance(outputs, list | tuple):
        return type(outputs)(_as_float32(output) for output in outputs)
    return outputs  # None from a head without regression
