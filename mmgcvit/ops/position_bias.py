"""Relative position biases between queries and keys of a window (section 2.2, equation 6).

w: window size, h: heads, n: tokens per window, m: keys per window, which is n, or n + 1 with the
extra key that represents the padding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph_mode import is_eager_on_cpu
from .scratch import can_be_scratch, scratch
from .windows import Region, Windows, join


def position_biases(
    table: Tensor,
    windows: Windows,
    dtype: torch.dtype,
    regions: Sequence[Region] | None = None,
    is_kept: bool = False,
) -> Iterator[Tensor]:
    """Yield the biases between queries (rows) and keys (columns) of a window, for each region.

    The bias between query (y, x) and key (v, u) is the table's entry for their offset, which is in
    row y-v+w-1 and column x-u+w-1.

    In regions with padding, an extra last key represents all padded tokens of a window. Padded
    tokens have equal keys and equal values, so one key can replace them. Its bias is the
    log-sum-exp of their biases.

    Args:
        table: Bias of each offset, ((2w-1)², h).
        windows: Window layout of a feature map.
        dtype: Data type of the biases.
        regions: A subset of the regions of ``windows``. None for all.
        is_kept: Whether a bias is still used after the next one has been requested. If False,
            biases may share memory.

    Yields:
        (h, n, m). Rows are aligned to multiples of 8 elements, as fused attention on GPUs
        expects.
    """
    # DistributedDataParallel expects the gradient to have the table's strides. The gradient of
    # this view has them; the gradient of the transposes below does not if there is one head.
    table = table.flatten().view(table.shape)
    regions = windows.regions if regions is None else regions
    of_padding = _biases_of_padding(table, windows, regions)
    for region in regions:
        # cast before slicing, since the cast of a slice would lose the row alignment
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
    """Yield the biases of :func:`position_biases` for keys in reverse order, as overlapping views.

    With reversed keys, the biases of a query are a patch of the table, and consecutive queries of
    a column have overlapping patches. So the biases can be added to scores without materializing
    an array of queries and keys.

    Yields:
        The biases for tokens, (h, height, width, n), and for the padding, (h, n) or None.
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
    """Return the gradient of the table, on a CPU in a fraction of the time that autograd takes.

    Args:
        grads: Gradients of the biases of each region for keys in reverse order, (h, n, m).
        biases: Results of :func:`reversed_position_biases`.
        table: Bias of each offset, ((2w-1)², h).
        windows: Window layout of a feature map.

    Returns:
        ((2w-1)², h), in the dtype of ``grads``.
    """
    w = windows.window_size
    grid = grads[0].new_zeros(table.shape[1], 2 * w - 1, 2 * w - 1)
    for grad, region in zip(grads, windows.regions, strict=True):
        size = region.height, region.width
        patches = (
            grad[..., : region.num_tokens].unflatten(-1, size).unflatten(1, size).transpose(2, 3)
        )
        # the biases of query (y, x) start at row w-height+y and column w-width+x of the table
        rows = grad.new_zeros(len(grad), 2 * w - 1, region.width, region.width)
        for y, patch in enumerate(patches.unbind(1)):
            rows.narrow(1, w - region.height + y, region.height).add_(patch)
        for x, row in enumerate(rows.unbind(2)):
            grid.narrow(2, w - region.width + x, region.width).add_(row)
    if any(map(windows.is_partial, windows.regions)):
        grid += _padding_backward(grads, biases, table, windows)
    grad_table = grid.flatten(1).t()
    # the strides of the table, even with a single head
    return grad_table.flatten().view(table.shape)


def resize_bias_table(table: Tensor, num_offsets: int) -> Tensor:
    """Resize a relative position bias table to another window size with bicubic interpolation.

    A table that already has the target size is returned unchanged.

    Args:
        table: Bias of each offset, ((2w-1)², h).
        num_offsets: Target number of offsets, (2w'-1)².

    Returns:
        (num_offsets, h), in the dtype of ``table``.

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


def resize_bias_tables(
    state: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Resize the position bias tables of a state dict to the window sizes of a model.

    Args:
        state: State dict with the tables; other entries are ignored.
        shapes: Names and shapes of the model's tensors.

    Returns:
        The resized tables by name. Tables that already fit or have a different number of heads are
        not included.

    Raises:
        ValueError: If a table does not belong to square windows.
    """
    resized = {}
    for name, shape in shapes.items():
        table = state.get(name)
        if not name.endswith('.relative_position_bias_table') or not isinstance(table, Tensor):
            continue
        if table.shape[1:] == shape[1:] and len(table) != shape[0]:
            try:
                resized[name] = resize_bias_table(table, shape[0])
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
    return resized


def _offsets_within(table: Tensor, windows: Windows, region: Region) -> Tensor:
    """Return the part of a table, or of a reversed table, with the offsets inside a window.

    Returns:
        A view, (h, 2·height-1, 2·width-1).
    """
    w, height, width = windows.window_size, region.height, region.width
    grid = table.t().unflatten(1, (2 * w - 1, 2 * w - 1))
    return grid[:, w - height :, w - width :][:, : 2 * height - 1, : 2 * width - 1]


def _bias_of_tokens(table: Tensor, windows: Windows, region: Region, is_kept: bool) -> Tensor:
    """Return the biases between the tokens of a window, (h, n, n)."""
    if not is_eager_on_cpu(table):
        # the biases of a query are a patch of the table, with the keys in reverse order
        grid = _offsets_within(table, windows, region)
        patches = grid.unfold(1, region.height, 1).unfold(2, region.width, 1)
        return patches.reshape(-1, region.num_tokens, region.num_tokens).flip(2)
    # The biases of a query are a patch of the reversed table. The patches of the queries are in
    # reverse order.
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
    """Yield the biases for the key that represents the padding, (h, n), per region with padding."""
    partial = [region for region in regions if windows.is_partial(region)]
    if not partial:
        return
    exponentials, highest = _exponentials(table, windows)
    for region in partial:
        # autocast would multiply float32 tensors in half precision; it leaves float64 unchanged
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
    """Return the gradient of the table through the biases of the padding, (h, 2w-1, 2w-1).

    The arguments are those of :func:`position_biases_backward`.
    """
    exponentials, highest = _exponentials(table, windows)
    grad_exponentials = torch.zeros_like(exponentials)
    for grad, (_, of_padding), region in zip(grads, biases, windows.regions, strict=True):
        if of_padding is not None:
            # gradient of the logarithm of a sum
            grad_sum = grad[..., -1] * (highest - of_padding).exp()
            grad_sum = grad_sum.unflatten(1, (region.height, region.width))
            for rows, columns in _padding_bands(windows, region, exponentials):
                grad_exponentials += rows.mT @ (grad_sum @ columns)
    return grad_exponentials.mul_(exponentials)


def _exponentials(table: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Return exp(table - highest), (h, 2w-1, 2w-1), and highest, the maximum per head, (h, 1).

    Devices that support float64 use it: it can represent the exponentials even if the table's
    values differ by hundreds.
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
    """Yield masks of the table's entries that belong to offsets between queries and padding.

    The padding consists of up to two rectangles: the columns to the right of the window, and the
    rows below the window within the window's own columns.

    Yields:
        Two masks per rectangle: (height, 2w-1) selects the table's rows for each row of queries,
        (width, 2w-1) selects the table's columns for each column of queries.
    """
    w, height, width = windows.window_size, region.height, region.width
    if width < w:
        yield _band(windows, height, (0, w), like), _band(windows, width, (width, w), like)
    if height < w:
        yield _band(windows, height, (height, w), like), _band(windows, width, (0, width), like)


def _band(windows: Windows, queries: int, keys: tuple[int, int], like: Tensor) -> Tensor:
    """Return a mask of the offsets between queries and keys in one dimension, (queries, 2w-1).

    Args:
        windows: Window layout, which caches the result.
        queries: Number of queries. Their positions start at 0.
        keys: Start (inclusive) and end (exclusive) of the positions of the keys.
        like: A tensor with the dtype and device of the result.
    """
    w = windows.window_size

    def compute() -> Tensor:
        # like.new_ones would return a tensor that is only valid inside of torch.func.vmap
        ones = torch.ones(queries, 2 * w - 1, dtype=like.dtype, device=like.device)
        # query y and key v have the offset y-v+w-1
        return ones.tril(w - 1 - keys[0]).triu(w - keys[1])

    return windows.constant((queries, keys, like.dtype, like.device), compute)


def _reversed(x: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    # Tensor.flip keeps the memory order of overlapping patches, which is slow to access
    return torch.stack(x.unbind(dim)[::-1], dim, out=out)
