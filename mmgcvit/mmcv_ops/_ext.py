"""Replacement for ``mmcv._ext`` if mmcv is installed without compiled operators.

mmcv looks up operators in this module by name. The operators that detectors and segmentors use are
implemented with torchvision or PyTorch. A call of any other operator raises an error that names it.
"""

from collections.abc import Callable
from typing import NoReturn

import torchvision

from mmgcvit.mmcv_ops.boxes import bbox_overlaps, nms, nms_match, softnms
from mmgcvit.mmcv_ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from mmgcvit.mmcv_ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mmgcvit.mmcv_ops.ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from mmgcvit.mmcv_ops.roi_align import roi_align_backward, roi_align_forward
from mmgcvit.mmcv_ops.roi_pool import roi_pool_backward, roi_pool_forward

__all__ = [
    'bbox_overlaps',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """Return the text that environment dumps show as mmcv's compiler."""
    return f'none (operators of torchvision {torchvision.__version__}, by mmgcvit)'


def get_compiling_cuda_version() -> str:
    """Return the text that environment dumps show as the CUDA version of mmcv's operators."""
    return get_compiler_version()


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def unavailable(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator '{name}' is not available: the installed mmcv has no compiled "
            'operators, and mmgcvit only implements the ones that common detectors and segmentors '
            'use. Build mmcv with its operators to use it (docs/operators.md)'
        )

    return unavailable
