"""Use of single precision where torchvision has no half-precision kernels."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast all tensors to the dtype of the first one, or to float32 if that is half precision.

    Callers copy the results to tensors of the original dtype.
    """
    dtype = torch.float32 if tensors[0].dtype in HALF else tensors[0].dtype
    return tuple(tensor.to(dtype) for tensor in tensors)
