"""RoIPool as defined by mmcv, with the names and arguments of ``mmcv._ext``.

torchvision's RoIPool cannot be used, because it rounds the corners of regions and mmcv does not.

N: number of images, C: channels, H, W: height and width of the feature map, R: number of regions,
h, w: numbers of bins per region along height and width.
"""

import torch
from torch import Tensor

from .precision import at_least_float32


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of each bin to ``output``.

    Args:
        input: Feature map, (N, C, H, W).
        rois: Regions, (R, 5): image index, then x1, y1, x2, y2 in pixels of the image, with the
            last pixel included.
        output: Pooled features, (R, C, h, w), initialized with zeros. Empty bins and regions
            without area keep the zeros.
        argmax: Flat index of the maximum in the feature map, (R, C, h, w). -1 for empty bins.
        pooled_height: Number of bins h.
        pooled_width: Number of bins w.
        spatial_scale: Scale from image pixels to feature map pixels.
    """
    features, regions = at_least_float32(input, rois)
    argmax.fill_(-1)
    width = features.shape[3]
    x1, y1 = (regions[:, 1:3] * spatial_scale).unbind(1)
    x2, y2 = ((regions[:, 3:] + 1) * spatial_scale).unbind(1)
    # computed for all regions together, to copy the indices from the GPU only once
    rows = _edges(y1, y2, pooled_height, features.shape[2]).tolist()
    columns = _edges(x1, x2, pooled_width, width).tolist()
    images = regions[:, 0].long().tolist()
    for region, (image, row, column) in enumerate(zip(images, rows, columns, strict=True)):
        (top, bottom), (left, right) = _extent(row), _extent(column)
        if bottom <= top or right <= left:
            continue
        crop = features[image, :, top:bottom, left:right]
        # columns first: of equal maxima, this selects the first one in the first row, like mmcv
        in_columns, x = _maximum(crop, column, left)  # (C, rows of the crop, w)
        best, y = _maximum(in_columns.transpose(1, 2), row, top)  # (C, w, h)
        x = x.transpose(1, 2).gather(2, y)
        empty = best.isneginf()
        index = ((y + top) * width + x + left).masked_fill(empty, -1)
        output[region] = best.masked_fill(empty, 0).transpose(1, 2).to(output.dtype)
        argmax[region] = index.transpose(1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of the feature map to ``grad_input`` (N, C, H, W)."""
    (grad,) = at_least_float32(grad_output)
    images, channels, height, width = grad_input.shape
    area = height * width
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * area + argmax  # (R, C, h, w)
    has_maximum = argmax >= 0
    total = grad.new_zeros(images * channels * area)
    total.index_add_(0, index[has_maximum], grad[has_maximum])
    grad_input.copy_(total.view(grad_input.shape))


def _edges(start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
    """Return start and end (exclusive) pixel of each bin along one dimension, (R, bins, 2)."""
    steps = torch.arange(bins + 1, device=start.device)
    length = end - start
    edges = steps * (length / bins)[:, None] + start[:, None]
    edges = torch.stack((edges[:, :-1].floor(), edges[:, 1:].ceil()), dim=-1).clamp(0, size).long()
    return torch.where((length > 0)[:, None, None], edges, torch.zeros_like(edges))


def _extent(edges: list[list[int]]) -> tuple[int, int]:
    return min(first for first, _ in edges), max(last for _, last in edges)


def _maximum(crop: Tensor, edges: list[list[int]], start: int) -> tuple[Tensor, Tensor]:
    """Return the maximum of each bin along the last dimension of (C, L, pixels), and its index.

    ``edges`` are positions in the feature map, and ``start`` is the position of the crop's first
    pixel. The maximum of an empty bin is minus infinity.
    """
    first, end = (torch.tensor(edges, device=crop.device) - start).unsqueeze(-1).unbind(1)
    longest = max(after - before for before, after in edges)
    pixels = first + torch.arange(longest, device=crop.device)  # (bins, longest)
    inside = pixels < end
    pixels = pixels.clamp(0, crop.shape[2] - 1)
    values, index = crop[:, :, pixels].masked_fill(~inside, -torch.inf).max(-1)
    return values, pixels.expand(*index.shape, longest).gather(-1, index[..., None]).squeeze(-1)
