"""Regions of feature maps and of images in exported graphs, for any number of boxes.

N: number of boxes, C: channels, m: size of a region's features or mask, H, W: height and width of
an image in pixels. Boxes are x1, y1, x2, y2 in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor


def one_more(x: Tensor) -> Tensor:
    """Append a row of zeros, because group norm in ONNX Runtime fails on empty inputs."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, 1))


def extract(extractor: SingleRoIExtractor, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Return the features inside boxes (N, 4), each from one level: (N, C, m, m)."""
    regions = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)
    levels = extractor.map_roi_levels(regions, extractor.num_inputs)
    parts, places = [], []
    for level, layer in enumerate(extractor.roi_layers):
        (place,) = (levels == level).nonzero(as_tuple=True)
        places.append(place)
        parts.append(
            torchvision.ops.roi_align(
                features[level],
                regions[place],
                layer.output_size,
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
        )
    return torch.cat(parts)[torch.cat(places).argsort()]


def paste(masks: Tensor, boxes: Tensor, size: Tensor) -> Tensor:
    """Resize masks to their boxes in an image, with zeros around them.

    Bilinear interpolation is separable, so that this is two products of matrices.

    Args:
        masks: Probabilities inside the boxes, (N, m, m).
        boxes: Boxes, (N, 4).
        size: Height and width of the image, (2,).

    Returns:
        Probabilities at each pixel, (N, H, W).
    """
    height, width = size.unbind()
    rows = _weights(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = _weights(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _weights(low: Tensor, high: Tensor, size: Tensor, cells: int) -> Tensor:
    """Return the weight of each cell of a mask at each pixel of an axis, (N, size, m)."""
    pixels = torch.arange(size, device=low.device) + 0.5
    place = (pixels - low[:, None]) / (high - low)[:, None] * cells - 0.5
    distance = place[..., None] - torch.arange(cells, device=low.device)
    return (1 - distance.abs()).clamp(min=0)
