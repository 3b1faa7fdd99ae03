"""RoIPool by mmcv's definition, under the names and arguments of ``mmcv._ext``.

torchvision's has another one: it rounds the corners of regions, mmcv does not.

Letters: N images, C channels, H, W of a feature map, R regions, (h, w) bins of a region.
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
    """Write the maximum of each bin of regions into ``output``.

    Args:
        input: (N, C, H, W).
        rois: (R, 5): index of the image, then x1, y1, x2, y2 in its pixels, the last included.
        output: (R, C, h, w), zeros: bins without a pixel and regions without area stay so.
        argmax: (R, C, h, w): where in the map the maximum is, row by row; -1 in bins without one.
        pooled_height: h.
        pooled_width: w.
        spatial_scale: Factor from the image's pixels to those of the map.
    """
    features, regions = at_least_float32(input, rois)
    argmax.fill_(-1)
    width = features.shape[3]
    x1, y1 = (regions[:, 1:3] * spatial_scale).unbind(1)
    x2, y2 = ((regions[:, 3:] + 1) * spatial_scale).unbind(1)
    # computed for all regions, as indices have to come from the GPU
    rows = _edges(y1, y2, pooled_height, features.shape[2]).tolist()
    columns = _edges(x1, x2, pooled_width, width).tolist()
    images = regions[:, 0].long().tolist()
    for region, (image, row, column) in enumerate(zip(images, rows, columns, strict=True)):
        (top, bottom), (left, right) = _extent(row), _extent(column)
        if bottom <= top or right <= left:
            continue
        crop = features[image, :, top:bottom, left:right]
        # columns first: of equal values the first one of the first row counts then
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
    """Write the gradient of the features into ``grad_input`` (N, C, H, W)."""
    (grad,) = at_least_float32(grad_output)
    images, channels, height, width = grad_input.shape
    area = height * width
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * area + argmax  # (R, C, h, w)
    found = argmax >= 0
    total = grad.new_zeros(images * channels * area)
    total.index_add_(0, index[found], grad[found])
    grad_input.copy_(total.view(grad_input.shape))


def _edges(start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
    """Return first and last + 1 pixel of each bin along one side of the regions, (R, bins, 2)."""
    steps = torch.arange(bins + 1, device=start.device)
    length = end - start
    edges = steps * (length / bins)[:, None] + start[:, None]
    edges = torch.stack((edges[:, :-1].floor(), edges[:, 1:].ceil()), dim=-1).clamp(0, size).long()
    return torch.where((length > 0)[:, None, None], edges, torch.zeros_like(edges))


def _extent(edges: list[list[int]]) -> tuple[int, int]:
    return min(first for first, _ in edges), max(last for _, last in edges)


def _maximum(crop: Tensor, edges: list[list[int]], start: int) -> tuple[Tensor, Tensor]:
    """Return the maximum of each bin along the last dimension of (C, L, pixels), and its index.

    Edges count from the map's first pixel, ``start`` is the crop's first one. The maximum of a bin
    without a pixel is minus infinity.
    """
    first, end = (torch.tensor(edges, device=crop.device) - start).unsqueeze(-1).unbind(1)
    longest = max(after - before for before, after in edges)
    pixels = first + torch.arange(longest, device=crop.device)  # (bins, longest)
    inside = pixels < end
    pixels = pixels.clamp(0, crop.shape[2] - 1)
    values, index = crop[:, :, pixels].masked_fill(~inside, -torch.inf).max(-1)
    return values, pixels.expand(*index.shape, longest).gather(-1, index[..., None]).squeeze(-1)
