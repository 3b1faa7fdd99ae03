"""Computing in single precision what torchvision has no kernels of half precision for."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return float16 and bfloat16 tensors as float32 and others as they are, all of one type.

    The type is that of the first one. Results are copied into tensors of the caller's type.
    """
    dtype = torch.float32 if tensors[0].dtype in HALF else tensors[0].dtype
    return tuple(tensor.to(dtype) for tensor in tensors)
