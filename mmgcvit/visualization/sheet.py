"""Pictures of the maps of an image: a sheet of all stages, and single maps.

H, W: height and width of an image in pixels.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from .attention import GLOBAL, LOCAL, AttentionMap, choose_blocks
from .map_pictures import Panel, draw_panel, draw_sheet, principal_colors
from .maps import MapOptions, Maps, compute_maps

if TYPE_CHECKING:
    from ..inference import TrainedModel


def draw_maps(
    trained: 'TrainedModel',
    image_path: str | os.PathLike,
    folder: str | os.PathLike,
    options: MapOptions,
) -> Iterator[Path]:
    """Write pictures of the global queries, the attention and the Grad-CAM of an image.

    Args:
        trained: Model with a GC ViT.
        image_path: Image file.
        folder: Output folder. Existing files of the same names are replaced.
        options: What to show.

    Yields:
        The path of each file when it is written.

    Raises:
        UserError: If the image, the folder or an option does not fit.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f'{folder} is a file: pass the path of a folder for the pictures')
    maps = compute_maps(trained, image_path, options)
    for name, content in _files(maps):
        yield write_atomically(Path(folder) / name, content())


def _files(maps: Maps) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the name of each file, and a function that returns its content."""
    options = maps.options
    yield 'sheet.png', lambda: _sheet(maps)
    stages = [i for i in maps.recording.queries if options.stage in (None, i)]
    if stages:
        yield 'queries.png', lambda: _queries(maps, stages)
    suffix = '' if options.head is None else f'_head{options.head}'
    if options.token is not None:
        suffix += '_x{}_y{}'.format(*options.token)
    for key in maps.chosen:
        each = maps.attention[key]
        name = f'attention_{each.name}{suffix}.png'
        yield name, partial(_draw_attention, maps, each)
    if maps.target is not None:
        stage = options.stage if options.stage in maps.cams else max(maps.cams)
        number = '' if maps.target.number is None else f'_detection{maps.target.number}'
        name = re.sub('[^0-9A-Za-z]+', '_', maps.target.name)
        title = f'{maps.target.title}\n{maps.cam_method} of the output of stage {stage}'
        panel = replace(_cam(maps, stage), title=title)
        yield f'cam_stage{stage}{number}_{name}.png', lambda: draw_panel(maps.image, panel)
    if options.numbers:
        yield 'maps.npz', maps.npz


def _draw_attention(maps: Maps, each: AttentionMap) -> bytes:
    return draw_panel(maps.image, _attention(maps, each))


def _sheet(maps: Maps) -> bytes:
    rows = []
    for i in range(len(maps.backbone.stages)):
        keys = [*choose_blocks(maps.backbone, i), *(key for key in maps.chosen if key[0] == i)]
        recorded = (maps.attention[key] for key in keys if key in maps.attention)
        of_kind = {each.kind: each for each in recorded}
        row = [_windows(maps, i), _query(maps, i)]
        for kind in (LOCAL, GLOBAL):
            each = of_kind.get(kind)
            row.append(None if each is None else _small_attention(maps, each))
        if maps.target is not None:
            row.append(_cam(maps, i) if i in maps.cams else None)
        rows.append(row)
    token = maps.options.token
    what = 'mean over the queries of each window' if token is None else 'query of the marked token'
    title = f'Attention: {what}'
    if maps.target is not None:
        title += f'; Grad-CAM: {maps.target.title}'
    return draw_sheet(maps.image, rows, title)


def _queries(maps: Maps, stages: list[int]) -> bytes:
    panels = [
        replace(panel, title=f'stage {i}: {panel.title}')
        for i in stages
        if (panel := _query(maps, i)) is not None
    ]
    title = 'Global queries: similar colors mean similar queries'
    return draw_sheet(maps.image, [[Panel('image'), *panels]], title)


def _windows(maps: Maps, i: int) -> Panel:
    """Return the panel of the image with the windows of a stage."""
    size, stride = maps.backbone.stages[i].window_size, 4 * 2**i
    seen = maps.placement.seen
    top, left, step_y, step_x = maps.placement.box_on_image((0, 0, size, size), stride)
    return Panel(
        f'stage {i}: windows of {size}×{size}\ntokens, stride {stride}',
        rows=np.arange(top, seen[0].stop, step_y),
        columns=np.arange(left, seen[1].stop, step_x),
        area=seen,
        token=maps.options.token,
        rectangle=_box(maps) if i == 0 else None,
    )


def _query(maps: Maps, i: int) -> Panel | None:
    query = maps.recording.queries.get(i)
    if query is None:
        return None
    # the query represents the complete input
    height, width = (size / len(query) for size in maps.recording.input_size)
    colors = maps.placement.to_image(principal_colors(query.cpu().numpy()), (height, width))
    return Panel(f'global query, {len(query)}×{len(query)},\n3 principal components', colors)


def _attention(maps: Maps, each: AttentionMap) -> Panel:
    """Return the panel of a block's attention, relative to uniform attention."""
    weights, heads = each.weights, f'mean of {len(each.weights)} heads'
    # a head of the chosen stage may not exist in the other stages of the sheet
    if maps.options.head is not None and maps.options.head < len(weights):
        heads = f'head {maps.options.head}'
        weights = weights[maps.options.head : maps.options.head + 1]
    elif len(weights) == 1:
        heads = '1 head'
    values = weights.mean(0).cpu().numpy() * each.window_size**2
    rectangle = None
    if each.window is not None:
        top, left, height, width = each.window
        outside = np.ones(values.shape, bool)
        outside[top : top + height, left : left + width] = False
        values[outside] = np.nan
        rectangle = maps.placement.box_on_image(each.window, each.stride)
    query = 'mean over queries' if each.token is None else 'query of the marked token'
    return Panel(
        f'{each.kind} attention, stage {each.stage}, block {each.block}, {heads}\n'
        f'{query}; {_padding_share(maps, each, weights):.1%} to padding',
        maps.placement.to_image(values, (each.stride, each.stride)),
        'attention / uniform attention',
        maps.options.token,
        rectangle,
    )


def _padding_share(maps: Maps, each: AttentionMap, weights: Tensor) -> float:
    """Return the share of attention weights (h, H, W) that no pixel of the picture shows.

    It goes to padded tokens of windows, and to cells where the test pipeline has padded the image.
    """
    rows, columns = (math.ceil(size / each.stride) for size in maps.placement.seen_size)
    shown = float(weights[:, :rows, :columns].sum((1, 2)).mean())
    if each.token is not None:
        return 1 - shown
    # the weights of each window and its padding add up to 1
    windows = [math.ceil(size / each.window_size) for size in weights.shape[1:]]
    return 1 - shown / math.prod(windows)


def _small_attention(maps: Maps, each: AttentionMap) -> Panel:
    panel = _attention(maps, each)
    heads = panel.title.partition('\n')[0].rpartition(', ')[2]
    title = f'{each.kind}, block {each.block}, {heads}\n0 to {panel.highest:.3g} × uniform'
    return replace(panel, title=title)


def _cam(maps: Maps, stage: int) -> Panel:
    stride = 4 * 2**stage
    values = maps.placement.to_image(maps.cams[stage], (stride, stride), smooth=True)
    highest = float(np.nanmax(values))
    empty = '' if highest > 0 else '0 everywhere, '
    return Panel(
        f'{maps.cam_method},\n{empty}output of stage {stage}',
        values / highest if highest > 0 else values,
        'Grad-CAM / its maximum',
        rectangle=_box(maps),
        outline=maps.target.mask if maps.target else None,
    )


def _box(maps: Maps) -> tuple[float, float, float, float] | None:
    """Return top, left, height and width of the detection that Grad-CAM explains."""
    if maps.target is None or maps.target.box is None:
        return None
    left, top, right, bottom = maps.target.box.tolist()
    return top, left, bottom - top, right - left
