"""Checks of a classifier's config: labels, numbers of classes, metrics and windows."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import METRICS, MODELS

from ...models import GCViT
from ...models.arch import DENSE_PREDICTION
from ...registry import class_of
from ...task import CLASSIFICATION, inner_model, task_of
from .config import Setup
from .report import Checks, Problem
from .split import find_evaluators, listed

PER_STAGE = ('window_size', 'query_downsamples')


def folder_labels(setup: Setup) -> Iterator[Problem]:
    """Datasets whose folders give the same label to different classes."""
    found = [
        (split, list(split.dataset.folder_to_idx))
        for split in setup.datasets
        if 'dataset' in vars(split) and getattr(split.dataset, 'folder_to_idx', None)
    ]
    for split, folders in found[1:]:
        first, expected = found[0]
        if folders == expected:
            continue
        pairs = ((expected, folders, split), (folders, expected, first))
        lacking = [
            f'{", ".join(which.names)} has no folder {listed(absent)}'
            for these, those, which in pairs
            if (absent := [name for name in these if name not in those])
        ]
        yield Problem(
            f'the folders of {", ".join(first.names)} and {", ".join(split.names)} differ: '
            f'{"; ".join(lacking)}. A label is the position of a folder in alphabetical order, so '
            'the same label means different classes: make the same folders in both, which may be '
            'empty'
        )


def labels(setup: Setup) -> Iterator[Problem]:
    """Labels that are not those of a class."""
    numbers = [head.get('num_classes') for _, head in _heads(setup)]
    for split in setup.datasets:
        if 'CustomDataset' not in split.bases or 'dataset' not in vars(split):
            continue
        given = [item['gt_label'] for item in split.items if 'gt_label' in item]
        total = len(split.classes) if split.classes else next(iter(numbers), None)
        if not given or total is None:
            continue
        beyond = [label for label in given if not 0 <= label < total]
        if beyond:
            yield Problem(
                f'{len(beyond)} of {len(given)} images of {", ".join(split.names)} have labels out '
                f'of range, such as {beyond[0]}: the {total} classes are 0 to {total - 1}. Correct '
                f'{split.option}.ann_file, {split.option}.metainfo.classes, or num_classes of the '
                'head and of data_preprocessor'
            )


def num_classes(setup: Setup) -> Iterator[Problem]:
    """Heads, preprocessors and metrics with different numbers of classes."""
    if task_of(setup.cfg) is not CLASSIFICATION:
        return
    heads = [(place, head['num_classes']) for place, head in _heads(setup) if 'num_classes' in head]
    if not heads:
        return
    place, total = heads[0]
    own = inner_model(setup.cfg).get('data_preprocessor')
    option = 'model.data_preprocessor' if own else 'data_preprocessor'
    number = (own or setup.cfg.get('data_preprocessor') or {}).get('num_classes')
    if number is not None and number != total:
        yield Problem(
            f'{option}.num_classes is {number}, but {place}.num_classes is {total}, and mixup and '
            f'CutMix need both: set --cfg-options {option}.num_classes={total}'
        )
    for name in setup.splits:
        for where, evaluator in find_evaluators(setup.cfg, name):
            topk = setup.setting(evaluator, 'topk', METRICS) or ()
            topk = (topk,) if isinstance(topk, int) else tuple(topk)
            fitting = tuple(k for k in topk if k <= total)
            if fitting != topk:
                yield Problem(
                    f'{where}.topk is {topk}, but there are {total} classes: set --cfg-options '
                    f'"{where}.topk=({", ".join(map(str, fitting or (1,)))},)"'
                )


def windows(setup: Setup) -> Iterator[Problem]:
    """Classifiers with the windows or query generators of detectors."""
    backbone = inner_model(setup.cfg).get('backbone') or {}
    cls = class_of(backbone, MODELS, setup.cfg.get('default_scope'))
    is_gcvit = isinstance(cls, type) and issubclass(cls, GCViT)
    if task_of(setup.cfg) is not CLASSIFICATION or not is_gcvit:
        return
    differing = [
        f'{name}={getattr(DENSE_PREDICTION, name)}'
        for name in PER_STAGE
        if _has(backbone, name, getattr(DENSE_PREDICTION, name))
    ]
    if differing:
        given = [name for name in PER_STAGE if backbone.get(name) is not None]
        options = [f'model.backbone.{name}=None' for name in given]
        if backbone.get('image_size') is None:
            options.append('model.backbone.image_size=224, or the height and width of your images')
        yield Problem(
            f'the classifier has {" and ".join(differing)}, as in detectors, so it is another '
            f'network than the published classifiers: set --cfg-options {" ".join(options)}',
            stops=False,
        )


def _has(backbone: Mapping[str, Any], name: str, values: tuple[int, ...]) -> bool:
    """Return whether an argument of GCViT is given as, or by default has, one value per stage."""
    given = backbone.get(name)
    if given is None:
        return backbone.get('image_size') is None
    return given == values[0] if isinstance(given, int) else tuple(given) == values


def _heads(setup: Setup) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return setup.heads() if task_of(setup.cfg) is CLASSIFICATION else iter(())


CLASSIFIERS: Checks = {folder_labels: (), labels: (), num_classes: (), windows: ()}
