"""Segmentors as graphs: from an image of any size to the class of each pixel.

H, W: height and width of the image, C: channels, K: number of classes, s: size after pooling.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ..errors import UserError
from .image import ImageInput
from .resizing import interpolate


def segmentor_graph(model: nn.Module) -> Callable[[ImageInput], nn.Module]:
    """Return the function that builds the graph of a segmentor for an input.

    Raises:
        UserError: If the segmentor cannot be exported.
    """
    if type(model) is not EncoderDecoder:
        raise UserError(
            f'model is {type(model).__name__}, which cannot be exported: use EncoderDecoder, or '
            'export only the backbone (docs/graph_modes.md)'
        )
    mode = model.test_cfg.get('mode', 'whole')
    if mode != 'whole':
        raise UserError(
            f"test_cfg.mode is '{mode}', which cannot be exported: use 'whole', with "
            '--cfg-options model.test_cfg.mode=whole, or cut images into tiles before the graph'
        )
    head = model.decode_head
    for method in ('predict', 'predict_by_feat'):
        if getattr(type(head), method, None) is not getattr(BaseDecodeHead, method):
            raise UserError(
                f'decode_head is {type(head).__name__}, which cannot be exported: use UPerHead, or '
                'export only the backbone (docs/graph_modes.md)'
            )
    return partial(Segmentor, model)


class Segmentor(nn.Module):
    """Segmentor that predicts the class of each pixel.

    Args:
        model: Segmentor of mmseg. It is not changed.
        image: Input of the graph.
    """

    outputs: ClassVar = {'label_map': {0: 'height', 1: 'width'}}

    def __init__(self, model: EncoderDecoder, image: ImageInput) -> None:
        super().__init__()
        self.image, self.model = image, copy.deepcopy(model)
        for module in self.model.modules():
            for name, child in module.named_children():
                if type(child) is nn.AdaptiveAvgPool2d:
                    setattr(module, name, AnySizePool(child.output_size))

    def forward(self, image: Tensor) -> Tensor:
        """Return the index of the class of each pixel, (H, W), uint8 or int32.

        Args:
            image: RGB, (H, W, 3), uint8.
        """
        x, sizes = self.image(image)
        head = self.model.decode_head
        logits = head(self.model.extract_feat(x))
        # resize to the padded input of the network, then remove the padding
        padded = torch._shape_as_tensor(x)[2:]
        logits = interpolate(logits, padded, head.align_corners)
        height, width = sizes.resized.unbind()
        logits = logits[:, :, :height, :width]
        logits = interpolate(logits, sizes.image, self.model.align_corners)[0]
        # one channel: background and one class
        is_binary = head.out_channels == 1
        labels = logits[0].sigmoid() > head.threshold if is_binary else logits.argmax(0)
        return labels.to(torch.uint8 if head.out_channels <= 256 else torch.int32)


class AnySizePool(nn.Module):
    """Adaptive average pooling of maps whose size is not known when the graph is recorded.

    ONNX has no such operator. Each output is the mean of a range of rows and columns, so that
    pooling is a product of matrices on each axis.

    Args:
        size: Height and width of the output.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps: (1, C, H, W) → (1, C, s, s)."""
        height, width = torch._shape_as_tensor(x)[2:].unbind()
        rows, columns = _means(height, self.size[0], x), _means(width, self.size[1], x)
        return rows @ x @ columns.transpose(0, 1)


def _means(length: Tensor, size: int, like: Tensor) -> Tensor:
    """Return the weights of a map's rows in each output, (size, length)."""
    index = torch.arange(size, device=like.device)[:, None]
    row = torch.arange(length, device=like.device)
    first = index * length // size
    end = ((index + 1) * length + size - 1) // size
    inside = ((row >= first) & (row < end)).to(like)
    return inside / inside.sum(1, keepdim=True)
