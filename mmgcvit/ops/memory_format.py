"""Order of the dimensions in memory."""

import torch
from torch import Tensor, nn

from .graph_mode import is_transformed


def prepare_images(images: Tensor) -> Tensor:
    """Return (B, C, H, W) with the channels last in memory.

    Convolutions keep this order, and norms and linear layers want it: nothing is reordered from
    the first convolution to the outputs.
    """
    if is_transformed():
        # torch.func.vmap does not support memory formats
        return images
    return images.contiguous(memory_format=torch.channels_last)


def prepare_parameters(network: nn.Module) -> None:
    """Give depthwise and pointwise weights the strides that their gradients have.

    With channels last, the gradients' strides differ in dimensions of size 1, which changes nothing
    in memory. But DistributedDataParallel compares strides, and would copy and warn.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4 and 1 in (parameter.shape[1], parameter.shape[2:].numel()):
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
