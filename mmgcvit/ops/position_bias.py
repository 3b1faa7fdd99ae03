"""Relative position biases of the queries and keys of a window (paper, section 2.2 and equation 6).

w: window size, h: heads, n: tokens of a window, m: its keys: n or, with the key that stands for the
padding, n + 1.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph_mode import is_recorded
from .scratch import can_be_scratch, scratch
from .windows import Region, Windows, join


def position_biases(
    table: Tensor,
    windows: Windows,
    dtype: torch.dtype,
    regions: Sequence[Region] | None = None,
    is_kept: bool = False,
) -> Iterator[Tensor]:
    """Yield the bias of each query (row) against each key, for the windows of each region.

    Query (y, x) and key (v, u) share the table's entry at their offset, row y-v+w-1 and column
    x-u+w-1.

    Where windows are padded, a last key stands for all padded tokens together. They have the same
    key and value, so their attention weights add up to that of one key, whose bias is the logarithm
    of the sum of the exponentials of their biases.

    Args:
        table: ((2w-1)², h), a bias for each offset.
        windows: The windows of a feature map.
        dtype: Type of the biases.
        regions: Some of the regions of ``windows``; None for all.
        is_kept: Whether a bias is used after the next one was asked for.

    Yields:
        (h, n, m). Rows begin at multiples of 8 elements, as fused
        attention on GPUs wants them.
    """
    # A view whose gradient has the table's strides, as DistributedDataParallel wants them. With one
    # head, the gradient of the transposes below has others.
    table = table.flatten().view(table.shape)
    regions = windows.regions if regions is None else regions
    of_padding = _biases_of_padding(table, windows, regions)
    for region in regions:
        # cast before they are sliced: a cast of a slice has rows of another length
        parts = [_bias_of_tokens(table, windows, region, is_kept).to(dtype)]
        if windows.is_partial(region):
            parts.append(next(of_padding).to(dtype)[..., None])
        m = region.num_tokens + windows.is_partial(region)
        if m % 8:
            parts.append(parts[0].new_zeros(*parts[0].shape[:2], -m % 8))
        yield join(parts, -1)[..., :m]


def reversed_position_biases(
    table: Tensor, windows: Windows
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield what :func:`position_biases` yields, for keys in reverse order, as overlapping views.

    In reverse order, a query's biases are a patch of the table, and the patches of the queries of
    one column follow each other: no array of queries and keys is needed to add them to scores.

    Yields:
        (h, height, width, n), and the biases against the padding, (h, n) if there is any.
    """
    of_padding = _biases_of_padding(table, windows, windows.regions)
    for region in windows.regions:
        grid = _offsets_within(table, windows, region)
        columns = grid.unfold(2, region.width, 1).transpose(1, 2).contiguous().flatten(2)
        patches = columns.unfold(2, region.num_tokens, region.width).transpose(1, 2)
        yield patches, next(of_padding) if windows.is_partial(region) else None


def position_biases_backward(
    grads: Sequence[Tensor],
    biases: Sequence[tuple[Tensor, Tensor | None]],
    table: Tensor,
    windows: Windows,
) -> Tensor:
    """Return the table's gradient; on a CPU in a fraction of autograd's time.

    Args:
        grads: (h, n, m) for each region, gradients of the biases for keys in reverse order.
        biases: What :func:`reversed_position_biases` yields.
        table: ((2w-1)², h).
        windows: The windows of a feature map.

    Returns:
        ((2w-1)², h), of the gradients' dtype.
    """
    w = windows.window_size
    grid = grads[0].new_zeros(table.shape[1], 2 * w - 1, 2 * w - 1)
    for grad, region in zip(grads, windows.regions, strict=True):
        size = region.height, region.width
        patches = (
            grad[..., : region.num_tokens].unflatten(-1, size).unflatten(1, size).transpose(2, 3)
        )
        # the biases of query (y, x) begin in row w-height+y and column w-width+x of the table
        rows = grad.new_zeros(len(grad), 2 * w - 1, region.width, region.width)
        for y, patch in enumerate(patches.unbind(1)):
            rows.narrow(1, w - region.height + y, region.height).add_(patch)
        for x, row in enumerate(rows.unbind(2)):
            grid.narrow(2, w - region.width + x, region.width).add_(row)
    if any(map(windows.is_partial, windows.regions)):
        grid += _padding_backward(grads, biases, table, windows)
    grad_table = grid.flatten(1).t()
    # with the table's strides, also of a single head
    return grad_table.flatten().view(table.shape)


def resize_bias_table(table: Tensor, num_offsets: int) -> Tensor:
    """Resize a relative position bias table bicubically to another window size.

    A table that has the size already is returned as it is.

    Args:
        table: ((2w-1)², h).
        num_offsets: (2w'-1)² offsets wanted.

    Returns:
        (num_offsets, h), of the table's dtype.

    Raises:
        ValueError: If the table is not 2-dimensional or does not belong to square windows.
    """
    size = math.isqrt(len(table)) if table.dim() == 2 else 0
    if size % 2 == 0 or size * size != len(table):
        raise ValueError(
            f'a relative position bias table of shape {tuple(table.shape)} cannot be resized: '
            'it must be 2-dimensional with (2w-1)² rows for windows of w × w tokens'
        )
    if len(table) == num_offsets:
        return table
    wanted = math.isqrt(num_offsets)
    grid = table.t().unflatten(1, (size, size))[None].float()
    grid = F.interpolate(grid, (wanted, wanted), mode='bicubic', align_corners=False)
    return grid[0].flatten(1).t().to(table.dtype)


def _offsets_within(table: Tensor, windows: Windows, region: Region) -> Tensor:
    """Return the part of a table, or of one read backwards, for offsets within a window.

    Returns:
        (h, 2·height-1, 2·width-1), a view.
    """
    w, height, width = windows.window_size, region.height, region.width
    grid = table.t().unflatten(1, (2 * w - 1, 2 * w - 1))
    return grid[:, w - height :, w - width :][:, : 2 * height - 1, : 2 * width - 1]


def _bias_of_tokens(table: Tensor, windows: Windows, region: Region, is_kept: bool) -> Tensor:
    """Return the biases among the tokens of a window: (h, n, n)."""
    # The biases of a query are a patch of the table, read backwards. With the table backwards they
    # are read forwards, and only the order of the queries is to be reversed.
    grid = _offsets_within(table.flip(0), windows, region)
    columns = _reversed(grid.unfold(2, region.width, 1), 2).transpose(1, 2).contiguous()
    rows = columns.unfold(2, region.height, 1).permute(0, 2, 1, 4, 3)
    memory = None
    if not is_kept and can_be_scratch(table):
        memory = scratch('bias', rows.shape, rows.dtype)
    return _reversed(rows, 1, memory).flatten(3).flatten(1, 2)


def _biases_of_padding(
    table: Tensor, windows: Windows, regions: Sequence[Region]
) -> Iterator[Tensor]:
    """Yield the bias of each query against all padded tokens together: (h, n) if there are any."""
    partial = [region for region in regions if windows.is_partial(region)]
    if not partial:
        return
    exponentials, highest = _exponentials(table, windows)
    for region in partial:
        # mixed precision would multiply in half precision, other than in float64
        with _full_precision(exponentials):
            sums = [
                rows @ (exponentials @ columns.mT)
                for rows, columns in _padding_bands(windows, region, exponentials)
            ]
        total = sums[0] if len(sums) == 1 else sums[0] + sums[1]
        yield total.flatten(1).log() + highest


def _padding_backward(
    grads: Sequence[Tensor],
    biases: Sequence[tuple[Tensor, Tensor | None]],
    table: Tensor,
    windows: Windows,
) -> Tensor:
    """Return the gradient through the biases of the padding, (h, 2w-1, 2w-1).

    The arguments are those of :func:`position_biases_backward`.
    """
    exponentials, highest = _exponentials(table, windows)
    grad_exponentials = torch.zeros_like(exponentials)
    for grad, (_, of_padding), region in zip(grads, biases, windows.regions, strict=True):
        if of_padding is not None:
            # of the logarithm of a sum
            grad_sum = grad[..., -1] * (highest - of_padding).exp()
            grad_sum = grad_sum.unflatten(1, (region.height, region.width))
            for rows, columns in _padding_bands(windows, region, exponentials):
                grad_exponentials += rows.mT @ (grad_sum @ columns)
    return grad_exponentials.mul_(exponentials)


def _exponentials(table: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Return exponentials of the table, (h, 2w-1, 2w-1), without the factor exp(highest), (h, 1).

    In float64 where it is supported: it holds those of a table whose values are hundreds apart.
    """
    dtype = torch.float64 if table.device.type in ('cpu', 'cuda', 'meta') else torch.float32
    grid = table.t().contiguous().to(dtype)
    highest = grid.detach().amax(1, keepdim=True)
    size = 2 * windows.window_size - 1
    return (grid - highest).exp().unflatten(1, (size, size)), highest


def _full_precision(x: Tensor) -> AbstractContextManager:
    if x.dtype == torch.float64:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _padding_bands(
    windows: Windows, region: Region, like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the offsets between queries and padding, as rectangles of the table.

    The padding is the columns at the right, and the rows at the bottom below the window's own
    columns.

    Yields:
        (height, 2w-1) and (width, 2w-1): for each row and column of queries, which rows and which
        columns of the table.
    """
    w, height, width = windows.window_size, region.height, region.width
    if width < w:
        yield _band(windows, height, (0, w), like), _band(windows, width, (width, w), like)
    if height < w:
        yield _band(windows, height, (height, w), like), _band(windows, width, (0, width), like)


def _band(windows: Windows, queries: int, keys: tuple[int, int], like: Tensor) -> Tensor:
    """Return which offsets lie between queries and keys in one dimension: (queries, 2w-1).

    Args:
        windows: Keep the result.
        queries: Their number; they begin at 0.
        keys: First position, and the one after the last.
        like: A tensor of the type and device wanted.
    """
    w = windows.window_size

    def compute() -> Tensor:
        # not like.new_ones: under torch.func.vmap that is for the transform only
        ones = torch.ones(queries, 2 * w - 1, dtype=like.dtype, device=like.device)
        # query y and key v have the offset y-v+w-1
        return ones.tril(w - 1 - keys[0]).triu(w - keys[1])

    return windows.constant((queries, keys, like.dtype, like.device), compute)


def _reversed(x: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    if is_recorded():
        return x.flip(dim)
    # Tensor.flip leaves memory in the order of the overlapping patches: slow to write and to read
    return torch.stack(x.unbind(dim)[::-1], dim, out=out)
