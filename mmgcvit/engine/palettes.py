"""Palettes with a color for every class.

Without one, visualizers fail in the middle of a run, and mmseg's datasets when they are built.
"""

from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from ..registry import class_of
from .device import Machine
from .wrappers import dataset_configs

Color = Sequence[int]


def adapt_palettes(cfg: Config, machine: Machine) -> None:
    """Complete the palettes of the datasets in which some class has no color."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        for _, dataset in dataset_configs(loader.get('dataset'), f'{split}_dataloader.dataset'):
            _complete(dataset, cfg.get('default_scope'))


def complete_palette(palette: Sequence[Color] | str | None, num_classes: int) -> list[Color]:
    """Return a palette with at least one color per class.

    Args:
        palette: RGB colors, 0 to 255. A string, such as mmdet's 'random', has none.
        num_classes: Number of classes.

    Returns:
        The colors of ``palette`` as a list, and made-up colors for the other classes.
    """
    # not a tuple, which mmdet takes for a single color
    colors = [] if palette is None or isinstance(palette, str) else list(palette)
    # the colors that mmdet and mmseg make up if there is no palette
    made_up = np.random.RandomState(42).randint(0, 256, (num_classes, 3)).tolist()
    return colors + [tuple(color) for color in made_up[len(colors) :]]


def _complete(dataset: MutableMapping[str, Any], scope: str | None) -> None:
    """Complete the palette of a dataset's config."""
    defaults = getattr(class_of(dataset, DATASETS, scope), 'METAINFO', {})
    metainfo = dict(dataset.get('metainfo') or {})
    if not metainfo.get('palette'):
        metainfo.pop('palette', None)  # mmdet and mmseg make up colors if there is no palette
    palette = metainfo.get('palette', defaults.get('palette'))
    classes = metainfo.get('classes', defaults.get('classes'))
    if isinstance(classes, str):
        with suppress(OSError):  # the data check reports it
            classes = list_from_file(classes)
    if palette and classes and not isinstance(classes, str):
        complete = complete_palette(palette, len(classes))
        if not defaults.get('classes'):
            # mmseg refuses a longer palette, except for a subset of a dataset's default classes
            complete = complete[: len(classes)]
        if complete != palette:
            metainfo['palette'] = complete
    if metainfo != (dataset.get('metainfo') or {}):
        dataset['metainfo'] = metainfo
