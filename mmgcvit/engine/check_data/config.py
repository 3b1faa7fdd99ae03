"""Checks of a config: settings that contradict each other."""

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    Registry,
)

from ...registry import class_of
from ...task import SEGMENTATION, inner_model, task_of
from ..kinds import mismatch, parameters
from ..options import walk
from .masks import box_options, monitored, predicts_masks
from .report import Checks, Problem, Unchecked
from .split import Split, find_evaluators

# heads with other classes than the dataset: objects and background, borders and areas, or their own
OTHER_HEADS = ('rpn_head', 'semantic_head', 'reid')
OTHER_TYPES = ('STDCHead',)
# arguments of transforms: the label value with which they fill label maps, or which they ignore
FILLED = ('ignore_index', 'seg_pad_val', 'seg_ignore_label', 'seg_fill_in')
# settings whose classes may accept text of a number, a list or a boolean, and then do nothing
QUOTED: Mapping[str, Registry] = {
    'param_scheduler': PARAM_SCHEDULERS,
    'default_hooks': HOOKS,
    'custom_hooks': HOOKS,
}


class Classes(NamedTuple):
    """Classes of a dataset.

    Attributes:
        names: All of them.
        things: Number of those that have instances, None if unknown.
    """

    names: tuple[str, ...]
    things: int | None


def _classes(split: Split) -> Classes | None:
    if 'CocoPanopticDataset' in split.bases:
        metainfo = {**split.cls.METAINFO, **(split.leaf.get('metainfo') or {})}
        things = metainfo.get('thing_classes')
        return Classes(tuple(metainfo['classes']), None if things is None else len(things))
    if 'dataset' not in vars(split) or not split.classes:
        return None  # not checked, or it could not be built
    return Classes(split.classes, len(split.classes))


@dataclass
class Setup:
    """A config and its datasets.

    Attributes:
        cfg: The config.
        splits: Names of the splits to check.
        datasets: The datasets, equal ones once.
    """

    cfg: Config
    splits: tuple[str, ...]
    datasets: list[Split]

    @property
    def classes(self) -> list[tuple[str, Classes]]:
        """Names and classes of the datasets that have any."""
        found = [(', '.join(split.names), _classes(split)) for split in self.datasets]
        return [(name, classes) for name, classes in found if classes is not None]

    def setting(self, config: Mapping[str, Any], name: str, registry: Registry) -> Any:
        """Return an argument of a config, or the default of its class, or None."""
        return config[name] if name in config else self.default(config, name, registry)

    def default(self, config: Mapping[str, Any], name: str, registry: Registry) -> Any:
        """Return the default of an argument of a config's class, or None."""
        cls = class_of(config, registry, self.cfg.get('default_scope'))
        for base in getattr(cls, '__mro__', ()):
            parameter = inspect.signature(base.__init__).parameters.get(name)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
        return None

    def heads(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the places and configs of the heads that distinguish the classes."""
        for name, value in walk(self.cfg.get('model') or {}, 'model'):
            keys = name.split('.')
            key = keys[-2] if keys[-1].isdigit() else keys[-1]
            if not (isinstance(value, Mapping) and key.endswith('head')):
                continue
            cls = class_of(value, MODELS, self.cfg.get('default_scope'))
            is_other = set(keys) & set(OTHER_HEADS) or getattr(cls, '__name__', '') in OTHER_TYPES
            if not is_other or 'num_things_classes' in value:
                yield name, value


def evaluator_files(setup: Setup) -> Iterator[Problem]:
    """Evaluators that read other annotations than their dataset uses."""
    for name in setup.splits:
        leaves = [split for split in setup.datasets if name in split.names]
        if len(leaves) != 1 or name == 'train':
            continue
        is_panoptic = 'CocoPanopticDataset' in leaves[0].bases
        leaf = leaves[0].leaf
        wanted = os.path.join(leaf.get('data_root') or '', leaf.get('ann_file') or '')
        used, total = leaves[0].counts.images, len(leaves[0].content.get('images', ()))
        for place, evaluator in find_evaluators(setup.cfg, name):
            path = evaluator.get('ann_file')
            if is_panoptic and 'seg_prefix' not in evaluator:
                continue  # it reads the instances
            if path and leaf.get('ann_file') and os.path.realpath(path) != os.path.realpath(wanted):
                yield Problem(
                    f'{place}.ann_file is {path}, but the {name} dataset reads {wanted}: set '
                    f'--cfg-options {place}.ann_file={wanted}'
                )
            elif path and used and used < total:
                yield Problem(
                    f'{place} evaluates all {total} images of {path}, but the {name} dataset uses '
                    f'{used} of them (indices or filter_cfg), so the metrics are too low: write an '
                    f'annotation file of these {used} images and set it in both places, or remove '
                    f'indices and filter_cfg from {leaves[0].option}',
                    stops=False,
                )


def class_counts(setup: Setup) -> Iterator[Problem]:
    """Datasets and heads with different classes."""
    known = setup.classes
    if any(split.leaf.get('return_classes') for split in setup.datasets):
        raise Unchecked('the model reads the names of the classes, not their number')
    if not known:
        return
    split, classes = known[0]
    for other, (names, _) in known[1:]:
        if names != classes.names:
            yield Problem(
                f'the classes of {split} and of {other} differ ({len(classes.names)} and '
                f'{len(names)}): give both the same metainfo.classes, in the same order'
            )
    heads = dict(setup.heads())
    for place, head in heads.items():
        yield from _check_head(setup, place, head, split, classes)
    if 'train' in setup.splits:
        yield from _check_weights(setup.cfg, tuple(heads), split, len(classes.names))


def _check_head(
    setup: Setup, place: str, head: Mapping[str, Any], split: str, classes: Classes
) -> Iterator[Problem]:
    total, things = len(classes.names), classes.things
    where = f'but the {split} dataset has {total} classes'
    number = setup.setting(head, 'num_classes', MODELS)
    counted = [setup.setting(head, f'num_{kind}_classes', MODELS) for kind in ('things', 'stuff')]
    is_default = 'num_classes' not in head
    if is_default and None not in counted:
        number = None
        meant = counted[0] if things is None else things
        if counted != [meant, total - meant]:
            yield Problem(
                f'{place}.num_things_classes is {counted[0]} and num_stuff_classes is '
                f'{counted[1]}, {where}: set --cfg-options {place}.num_things_classes={meant} '
                f'{place}.num_stuff_classes={max(total - meant, 0)}'
            )
    elif setup.setting(head, 'class_agnostic', MODELS):
        number = None  # one mask for all classes
    # the boxes and masks of a panoptic model are those of things
    wanted = things if '.roi_head.' in place else total
    if number is not None and wanted is not None and number != wanted:
        yield Problem(
            f'{place}.num_classes is {number}{" by default" * is_default}, '
            f'{where.replace(str(total), str(wanted))}: set --cfg-options '
            f'{place}.num_classes={wanted}, or correct metainfo.classes'
        )


def _check_weights(
    cfg: Config, heads: tuple[str, ...], split: str, total: int
) -> Iterator[Problem]:
    """Check that each ``class_weight`` in a loss of a head has one number per class."""
    settings = dict(walk(cfg.get('model') or {}, 'model'))
    for name, weights in settings.items():
        loss, _, key = name.rpartition('.')
        is_weights = key == 'class_weight' and isinstance(weights, list | tuple)
        if not (is_weights and name.startswith(tuple(f'{head}.' for head in heads))):
            continue
        # softmax over the classes and background
        is_cls = '.loss_cls.' in name or 'cls' in settings[loss].get('loss_name', '')
        background = is_cls and not settings[loss].get('use_sigmoid')
        wanted = total + background
        if len(weights) != wanted:
            yield Problem(
                f'{name} has {len(weights)} numbers, but the {split} dataset has {total} classes: '
                f'it needs {wanted}{" (the last one is for the background)" * background}'
            )


def ignore_index(setup: Setup) -> Iterator[Problem]:
    """Different label values that are ignored, in datasets, transforms, heads and evaluators."""
    cls = class_of(inner_model(setup.cfg), MODELS, setup.cfg.get('default_scope'))
    is_depth = any(base.__name__ == 'DepthEstimator' for base in getattr(cls, '__mro__', ()))
    if task_of(setup.cfg) is not SEGMENTATION or is_depth:
        return
    settings = {place: value for place, value in _ignored(setup) if value is not None}
    values = sorted(set(settings.values()), key=lambda value: (value == 255, value))
    if len(values) > 1:
        # the user chose a value that is not the default; but a class cannot be ignored, even if a
        # transform fills label maps with it
        labels = range(max((len(classes.names) for _, classes in setup.classes), default=0))
        meant = next((value for value in values if value not in labels), values[0])
        first = next(place for place, value in settings.items() if value == values[0])
        others = [place for place, value in settings.items() if value != values[0]]
        options = [_option(setup.cfg, p, meant) for p, value in settings.items() if value != meant]
        yield Problem(
            f'{first} is {values[0]}, but {", ".join(f"{p} is {settings[p]}" for p in others)}: '
            'the label value to ignore must be the same in all places, set --cfg-options '
            f'{" ".join(options)}'
        )


def _ignored(setup: Setup) -> Iterator[tuple[str, Any]]:
    """Yield the places and values of the settings of ignored labels."""
    preprocessor = inner_model(setup.cfg).get('data_preprocessor') or {}
    place = 'model.data_preprocessor.seg_pad_val'
    yield place, setup.setting(preprocessor, 'seg_pad_val', MODELS)
    for place, head in setup.heads():
        yield f'{place}.ignore_index', setup.setting(head, 'ignore_index', MODELS)
        yield from (each for each in walk(head, place) if each[0].endswith('.ignore_index'))
    for name in setup.splits:
        for place, part in walk(setup.cfg.get(f'{name}_dataloader') or {}, f'{name}_dataloader'):
            if not (isinstance(part, Mapping) and 'type' in part):
                continue
            if 'pipeline' in place.split('.'):
                yield from _filled(setup, place, part)
            else:
                yield f'{place}.ignore_index', setup.setting(part, 'ignore_index', DATASETS)
        for place, evaluator in find_evaluators(setup.cfg, name):
            yield f'{place}.ignore_index', setup.setting(evaluator, 'ignore_index', METRICS)


def _filled(setup: Setup, place: str, transform: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield place and value of each label that a transform ignores or fills label maps with."""
    for name in FILLED:
        value = setup.setting(transform, name, TRANSFORMS)
        # mmseg's RandomCrop reads ignore_index only if cat_max_ratio limits the share of a class
        unused = name == 'ignore_index' and (
            setup.setting(transform, 'cat_max_ratio', TRANSFORMS) == 1
        )
        # mmseg's BioMedical3D transforms fill with class 0 by default
        if not unused and (name in transform or value == 255):
            yield f'{place}.{name}', value
    default = setup.default(transform, 'pad_val', TRANSFORMS)
    if isinstance(default, Mapping):
        given = transform.get('pad_val', default)
        yield f'{place}.pad_val.seg', given.get('seg', 255) if isinstance(given, Mapping) else 255


def _option(cfg: Config, place: str, value: int) -> str:
    """Return the argument for ``--cfg-options`` that sets a value."""
    parent, _, key = place.rpartition('.')
    number = dict(walk(cfg)).get(parent) if key == 'seg' else None
    if isinstance(number, int | float):  # with a number, mmcv pads label maps with 255
        return f'"{parent}={{img: {number}, seg: {value}}}"'
    return f'{place}={value}'


def label_values(setup: Setup) -> Iterator[Problem]:
    """Datasets whose label values have different meanings."""
    settings = {
        f'{split.option}.reduce_zero_label': bool(
            setup.setting(split.leaf, 'reduce_zero_label', DATASETS)
        )
        for split in setup.datasets
        if 'BaseSegDataset' in split.bases
    }
    if len(set(settings.values())) > 1:
        yield Problem(
            f'{", ".join(f"{place} is {value}" for place, value in settings.items())}: set the '
            'same value in all, and shift the label maps accordingly'
        )


def quoted_values(setup: Setup) -> Iterator[Problem]:
    """Text where a schedule or a hook expects a number, a list or a boolean."""
    scope = setup.cfg.get('default_scope')
    for key, registry in QUOTED.items() if 'train' in setup.splits else ():
        for place, node in walk({key: setup.cfg.get(key)}):
            if not (isinstance(node, Mapping) and 'type' in node):
                continue
            for parameter in parameters(class_of(node, registry, scope)):
                value, name = node.get(parameter.name), f'{place}.{parameter.name}'
                wrong = _has_text(value) and mismatch(value, parameter.annotation, name)
                if wrong:
                    yield Problem(f'{wrong}: write it without quotes, and a list in brackets')


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and any(map(_has_text, value))
    )


def mask_settings(setup: Setup) -> Iterator[Problem]:
    """Model, pipelines and metrics that do not agree about masks."""
    cfg = setup.cfg
    predicts = predicts_masks(inner_model(cfg))
    takes_boxes = bool(box_options(cfg, ['train'])) and predicts
    for split in setup.datasets:
        if split.trains and takes_boxes and 'dataset' in vars(split):
            place = next(
                (
                    f'{split.option}.pipeline.{number}'
                    for number, step in enumerate(split.leaf.get('pipeline') or [])
                    if isinstance(step, Mapping) and 'with_bbox' in step
                ),
                None,
            )
            if place is not None and not split.loads('with_mask'):
                yield Problem(
                    f'the model has a mask head, but {place}.with_mask is False: set --cfg-options '
                    f'{place}.with_mask=True, or train on boxes only with --cfg-options '
                    f'{" ".join(box_options(cfg, ["train"]))}'
                )
    evaluators = [each for name in setup.splits for each in find_evaluators(cfg, name)]
    with_masks = [place for place, each in evaluators if 'segm' in (each.get('metric') or ())]
    if predicts is False and with_masks:
        yield Problem(
            f'{with_masks[0]}.metric needs masks, but the model has no mask head: set '
            f'--cfg-options {" ".join(box_options(cfg, setup.splits))}'
        )
    watched = list(monitored(cfg, 'segm_'))
    validated = any(place.startswith('val_') for place, _ in evaluators)
    if watched and validated and not any(place.startswith('val_') for place in with_masks):
        name, value = watched[0]
        yield Problem(
            f'{name} is {value}, but no evaluator computes mask AP: set --cfg-options '
            f'{name}={value.replace("segm", "bbox")}, or add segm to val_evaluator.metric'
        )


CONFIG: Checks = {
    evaluator_files: (),
    class_counts: (),
    ignore_index: (),
    label_values: (),
    quoted_values: (),
    mask_settings: (),
}
