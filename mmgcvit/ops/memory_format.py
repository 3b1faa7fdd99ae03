"""Memory formats of images and parameters."""

import torch
from torch import Tensor, nn

from .graph_mode import is_transformed


def prepare_images(images: Tensor) -> Tensor:
    """Convert images (B, C, H, W) to the channels-last memory format.

    Convolutions preserve this format, and norms and linear layers require channels last. So no
    tensor is reordered between the first convolution and the outputs.
    """
    if is_transformed():
        # torch.func.vmap does not support memory formats
        return images
    return images.contiguous(memory_format=torch.channels_last)


def prepare_parameters(network: nn.Module) -> None:
    """Give the weights of depthwise and pointwise convolutions the strides of their gradients.

    In the channels-last format, these strides differ only in dimensions of size 1, so the order in
    memory is the same. But DistributedDataParallel compares strides; if they differ, it warns and
    copies gradients.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4 and 1 in (parameter.shape[1], parameter.shape[2:].numel()):
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
