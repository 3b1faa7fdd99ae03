"""RoIAlign with average and max pooling, with the names and arguments of ``mmcv._ext``.

RoIAlign samples the features of a region at a grid of points in each bin. Average pooling uses
torchvision's operator; max pooling is implemented here.

N: number of images, C: channels, H, W: height and width of the feature map, R: number of regions,
h, w: numbers of bins per region along height and width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .precision import at_least_float32

MAXIMUM = 0  # mmcv's pool_mode for max pooling; 1 is average pooling
SAMPLES_AT_ONCE = 1 << 23  # limits max pooling to several buffers of 32 MB in float32


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the features of the regions to ``output``.

    Args:
        input: Feature map, (N, C, H, W).
        rois: Regions, (R, 5): image index, then x1, y1, x2, y2 in pixels of the image.
        output: Pooled features, (R, C, h, w), initialized with zeros. Regions without height or
            width keep the zeros.
        argmax_y: Max pooling only: row of the maximum in the bin's grid of points, (R, C, h, w).
        argmax_x: Max pooling only: column of the maximum in the bin's grid, (R, C, h, w).
        aligned_height: Number of bins h.
        aligned_width: Number of bins w.
        spatial_scale: Scale from image pixels to feature map pixels.
        sampling_ratio: Number of rows and columns of sampling points per bin. 0 selects about one
            point per pixel of the feature map.
        pool_mode: 0 for max pooling, 1 for average pooling.
        aligned: Whether to shift regions by half a pixel, so that pixel centers are aligned.
    """
    bins = (aligned_height, aligned_width)
    features, rois = at_least_float32(input, rois)
    if rois.device.type == 'cpu' and not rois.isfinite().all():
        raise ValueError('rois of RoIAlign must be finite, got NaN or infinity')
    if pool_mode != MAXIMUM:
        align = torch.ops.torchvision.roi_align
        output.copy_(align(features, rois, spatial_scale, *bins, sampling_ratio, aligned))
        return
    maps = features.flatten(2)
    for part, y, x in _sampling_points(
        rois, bins, spatial_scale, sampling_ratio, aligned, features.shape[1]
    ):
        image = rois[part, 0].long().view(-1, 1, 1)
        corners = _corners(y.flatten(1)[:, :, None], x.flatten(1)[:, None], features.shape[2:])
        samples = sum(weight[..., None] * maps[image, :, index] for index, weight in corners)
        samples = samples.unflatten(2, x.shape[1:]).unflatten(1, y.shape[1:])
        # (regions, h, rows, w, columns, C)
        best, index = samples.permute(0, 5, 1, 3, 2, 4).flatten(4).max(-1)
        output[part] = best.to(output.dtype)
        argmax_y[part] = (index // x.shape[2]).to(argmax_y.dtype)
        argmax_x[part] = (index % x.shape[2]).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the feature map to ``grad_input`` (N, C, H, W)."""
    bins = (aligned_height, aligned_width)
    grad, rois = at_least_float32(grad_output, rois)
    images, channels, height, width = shape = grad_input.shape
    if pool_mode != MAXIMUM:
        backward = torch.ops.torchvision._roi_align_backward
        grad_input.copy_(
            backward(grad, rois, spatial_scale, *bins, *shape, sampling_ratio, aligned)
        )
        return
    channel = torch.arange(channels, device=rois.device).view(-1, 1, 1)
    total = grad.new_zeros(images * channels * height * width)
    for part, y, x in _sampling_points(
        rois, bins, spatial_scale, sampling_ratio, aligned, channels
    ):
        plane = rois[part, 0].long().view(-1, 1, 1, 1) * channels + channel
        y = _choose(y[:, None, :, None], argmax_y[part])
        x = _choose(x[:, None, None], argmax_x[part])
        for index, weight in _corners(y, x, (height, width)):
            index = plane * (height * width) + index
            total.index_add_(0, index.flatten(), (grad[part] * weight).flatten())
    grad_input.copy_(total.view(shape))


def _sampling_points(
    rois: Tensor,
    bins: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    channels: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the coordinates of the sampling points for groups of regions with equal grids.

    Coordinates are computed with the same order of operations as in mmcv, to get the same rounding.

    Yields:
        Indices of r regions, (r,); y coordinates of their sampling points, (r, h, rows); x
        coordinates, (r, w, columns).
    """
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    start = corners[:, :2]
    size = corners[:, 2:] - start
    if not aligned:
        size = size.clamp(min=1)
    size = size / size.new_tensor(bins[::-1])  # width and height of a bin
    grids = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil()
    # with a fixed ratio, all grids are equal, and a synchronization with the GPU is not needed
    for grid in grids[:1] if sampling_ratio > 0 else grids.unique(dim=0):
        columns, rows = grid.long().tolist()
        if rows <= 0 or columns <= 0:
            continue
        same = (grids == grid).all(1).nonzero().squeeze(1)
        samples = channels * bins[0] * rows * bins[1] * columns
        for part in same.split(max(1, SAMPLES_AT_ONCE // max(1, samples))):
            x, y = (
                _along_axis(start[part, axis], size[part, axis], count, samples)
                for axis, count, samples in ((0, bins[1], columns), (1, bins[0], rows))
            )
            yield part, y, x


def _along_axis(start: Tensor, size: Tensor, bins: int, samples: int) -> Tensor:
    start, size = start[:, None, None], size[:, None, None]
    bin = torch.arange(bins, device=start.device)[:, None]
    sample = torch.arange(samples, device=start.device) + 0.5
    return start + bin * size + sample * size / samples


def _choose(coordinates: Tensor, argmax: Tensor) -> Tensor:
    """Return the coordinates of the points with the maximum, (r, C, h, w)."""
    coordinates = coordinates.expand(*argmax.shape, coordinates.shape[-1])
    return coordinates.gather(-1, argmax[..., None].long()).squeeze(-1)


def _corners(y: Tensor, x: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the flat index and the bilinear weight of each of the four pixels around (y, x)."""
    for row, vertical in _neighbours(y, size[0]):
        for column, horizontal in _neighbours(x, size[1]):
            yield row * size[1] + column, vertical * horizontal


def _neighbours(coordinate: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the two pixels next to a coordinate and their weights, which are 0 outside the map."""
    on_map = (coordinate >= -1) & (coordinate <= size)
    coordinate = torch.where(on_map, coordinate, 0).clamp(0, size - 1)
    low = coordinate.long()
    part = coordinate - low
    yield low, (1 - part) * on_map
    yield (low + 1).clamp(max=size - 1), part * on_map
