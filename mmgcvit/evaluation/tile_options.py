"""The options ``--tiles`` and ``--tile-overlap`` of tools."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from ..engine.device import Machine
from ..errors import UserError
from ..registry import class_of
from ..task import CLASSIFICATION, Task, task_of
from . import tiles  # noqa: F401  registers the transform and the model
from .tta import test_datasets

SMALLEST = 32  # pixels: the stride of the last feature map


@dataclass(frozen=True)
class TileOptions:
    """Size and overlap of tiles.

    Attributes:
        size: Height and width of a tile in pixels. None is the shorter edge to which the test
            pipeline resizes images, so that tiles are not resized.
        overlap: Pixels that neighbors share. None is a quarter of the size.
    """

    size: int | None = None
    overlap: int | None = None

    def of(self, pipeline: Sequence[Any], task: Task | None) -> tuple[int, int]:
        """Return size and overlap for a test pipeline.

        Raises:
            UserError: If a value is out of range, or the model is a classifier.
        """
        if task is CLASSIFICATION:
            raise UserError(
                '--tiles is for detectors and segmentors, and this is the config of a classifier: '
                'remove --tiles'
            )
        size = _shorter_edge(pipeline) if self.size is None else self.size
        if size < SMALLEST:
            raise UserError(f'--tiles is {size} pixels: use at least {SMALLEST}')
        overlap = size // 4 if self.overlap is None else self.overlap
        if not 0 <= overlap < size:
            raise UserError(
                f'--tile-overlap is {overlap} pixels: use at least 0 and less than the size of the '
                f'tiles, {size}'
            )
        print_log(f'--tiles: {size}x{size} pixels, overlap {overlap}', logger='current')
        return size, overlap


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--tiles`` and ``--tile-overlap`` to a parser."""
    parser.add_argument(
        '--tiles',
        nargs='?',
        type=int,
        const=True,
        metavar='SIZE',
        help='predict large images in tiles of SIZE x SIZE pixels and merge the predictions '
        '(default: the shorter edge to which the test pipeline resizes images)',
    )
    parser.add_argument(
        '--tile-overlap',
        type=int,
        metavar='PIXELS',
        help='pixels that neighboring tiles share (default: a quarter of SIZE)',
    )


def tile_options(args: argparse.Namespace) -> TileOptions | None:
    """Return the options, or None without ``--tiles``.

    Raises:
        UserError: If an overlap was passed without tiles.
    """
    if args.tiles is None:
        if args.tile_overlap is not None:
            raise UserError('--tile-overlap needs --tiles: add it, or remove --tile-overlap')
        return None
    return TileOptions(None if args.tiles is True else args.tiles, args.tile_overlap)


def keep_polygons(cfg: Config) -> None:
    """Keep annotated polygons in the test pipeline instead of converting them to bitmaps, in place.

    The bitmaps of 1000 objects in an image of 10000x10000 pixels would be 100 GB. The data checks
    use the pipeline as well, so a tool calls this before them.
    """
    for dataset in test_datasets(cfg):
        for step in dataset.pipeline:
            cls = class_of(step, TRANSFORMS, cfg.get('default_scope'))
            if isinstance(cls, type) and 'poly2mask' in inspect.signature(cls).parameters:
                step['poly2mask'] = False


def adapt_tiles(cfg: Config, machine: Machine, options: TileOptions) -> None:
    """Test each image in tiles and merge the predictions.

    The batch size of the test dataloader becomes the number of tiles per batch.

    Raises:
        UserError: If the options do not suit the config.
    """
    datasets = test_datasets(cfg)
    size, overlap = options.of(datasets[0].pipeline, task_of(cfg))
    for dataset in datasets:
        loading, following = split(dataset.pipeline, cfg.get('default_scope'))
        cut = dict(type='CutTiles', size=size, overlap=overlap, transforms=following)
        dataset.pipeline = [*loading, ConfigDict(cut)]
    loader = cfg.test_dataloader
    tiles_together, loader.batch_size = loader.get('batch_size', 1), 1
    cfg.model = ConfigDict(type='mmgcvit.TiledModel', module=cfg.model, batch_size=tiles_together)


def split(pipeline: Sequence[Any], scope: str | None = None) -> tuple[list[Any], list[Any]]:
    """Split a pipeline after the transform that loads the image.

    Args:
        pipeline: Transforms or their configs.
        scope: Default scope of the names of transforms.

    Raises:
        UserError: If no transform loads an image.
    """
    for number, step in enumerate(pipeline, 1):
        cls = class_of(step, TRANSFORMS, scope) if isinstance(step, Mapping) else type(step)
        name = getattr(cls, '__name__', '')
        if 'Load' in name and 'Annotation' not in name:
            return list(pipeline[:number]), list(pipeline[number:])
    raise UserError(
        '--tiles needs a test pipeline with a transform that loads the image, such as '
        'LoadImageFromFile, but the config has none: add it, or remove --tiles'
    )


def _shorter_edge(pipeline: Sequence[Any]) -> int:
    for step in pipeline:
        scale = step.get('scale') if isinstance(step, Mapping) else getattr(step, 'scale', None)
        if isinstance(scale, list | tuple):
            return int(min(scale))
    raise UserError(
        '--tiles needs a size, because the test pipeline does not resize images to a fixed scale: '
        'pass the number of pixels, for example --tiles 1024'
    )
