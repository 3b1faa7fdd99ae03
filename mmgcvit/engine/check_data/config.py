"""The datasets of a config, and whether model, evaluators and datasets belong together."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from ...mmcv_ops import require_operators
from ...registry import class_of, set_default_scope
from .coco import check_coco
from .report import Findings, Report
from .segmentation import check_segmentation

SPLITS = ('train', 'val', 'test')


def check_data(
    cfg: Config,
    samples: int | None = 50,
    fast: bool = False,
    splits: Sequence[str] = SPLITS,
) -> Report:
    """Check the datasets of a config, and that its heads and evaluators are made for them.

    Args:
        cfg: Config of a detector or segmentor.
        samples: How many images of each dataset are opened, None for all.
        fast: Whether large annotation files are read in part and of many files only some looked
            for, so that it takes a second or two whatever the dataset's size.
        splits: Which of train, val and test.
    """
    require_operators()  # mmdet and mmseg import them with their datasets
    set_default_scope(cfg.get('default_scope', 'mmengine'))
    report = Report()
    done: list[tuple[Mapping, int]] = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        for option, leaf in find_datasets(loader['dataset'], f'{split}_dataloader.dataset'):
            same = next((place for other, place in done if other == leaf), None)
            if same is not None:
                name, findings = report.datasets[same]
                names = name if split in name.split(', ') else f'{name}, {split}'
                report.datasets[same] = (names, findings)
                continue
            done.append((leaf, len(report.datasets)))
            report.datasets.append((split, _check_dataset(cfg, leaf, option, samples, fast)))
        if split != 'train':
            _check_evaluator(cfg, split, report.config)
    _check_class_counts(cfg, report)
    return report


def find_datasets(cfg: Mapping, option: str) -> Iterator[tuple[str, Mapping]]:
    """Yield the place and the config of every dataset inside wrappers (repeated, joined, …)."""
    if 'datasets' in cfg:
        for number, part in enumerate(cfg['datasets']):
            yield from find_datasets(part, f'{option}.datasets.{number}')
    elif isinstance(cfg.get('dataset'), Mapping):
        yield from find_datasets(cfg['dataset'], f'{option}.dataset')
    else:
        yield option, cfg


def _check_dataset(
    cfg: Config, leaf: Mapping, option: str, samples: int | None, fast: bool
) -> Findings:
    kind = leaf.get('type')
    found = Findings()
    cls = class_of(leaf, DATASETS, cfg.get('default_scope'))
    if cls is None:
        found.stop(f'{option}.type={kind!r} is no known dataset: correct it, or import its module')
        return found
    # by name: a detector's user need not have mmseg installed, and the other way round
    bases = {base.__name__ for base in cls.__mro__}
    if not bases & {'CocoDataset', 'BaseSegDataset'} or bases & {'CocoPanopticDataset'}:
        found.notes.append(f'not checked, {cls.__name__} is neither COCO-like nor of folders')
        return found
    settings = {key: value for key, value in leaf.items() if key != 'pipeline'}
    try:
        # the paths and class names are then those that the training will use
        dataset = DATASETS.build(dict(settings, pipeline=[], lazy_init=True))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        found.stop(f'{cls.__name__} cannot be built ({reason[:300]}): correct {option}')
        return found
    if 'CocoDataset' in bases:
        masks = bool((cfg.model.get('roi_head') or {}).get('mask_head'))
        return check_coco(dataset, option, samples, fast, masks)
    return check_segmentation(dataset, option, list(leaf.get('pipeline', [])), samples, fast)


def _check_evaluator(cfg: Config, split: str, found: Findings) -> None:
    """An evaluator that reads annotations has to read those of its dataset."""
    evaluators = cfg.get(f'{split}_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    leaves = list(find_datasets(cfg[f'{split}_dataloader']['dataset'], ''))
    if len(leaves) != 1:
        return
    leaf = leaves[0][1]
    wanted = os.path.join(leaf.get('data_root') or '', leaf.get('ann_file') or '')
    for evaluator in evaluators:
        path = evaluator.get('ann_file')
        if path and leaf.get('ann_file') and os.path.realpath(path) != os.path.realpath(wanted):
            found.stop(
                f'{split}_evaluator.ann_file is {path}, but the {split} dataset reads {wanted}: '
                f'set --cfg-options {split}_evaluator.ann_file={wanted}'
            )


def _check_class_counts(cfg: Config, report: Report) -> None:
    known = [(name, found.classes) for name, found in report.datasets if found.classes]
    if not known:
        return
    split, classes = known[0]
    for other, names in known[1:]:
        if names != classes:
            report.config.stop(
                f'the classes of {split} and of {other} differ ({len(classes)} and {len(names)}): '
                'give both the same metainfo.classes, in the same order'
            )
    for option, head in find_heads(cfg.model):
        number = head.get('num_classes')
        if number is not None and number != len(classes):
            report.config.stop(
                f'{option}.num_classes is {number}, but the {split} dataset has {len(classes)} '
                f'classes: set --cfg-options {option}.num_classes={len(classes)}, or correct '
                'metainfo.classes'
            )


def find_heads(model: Mapping) -> Iterator[tuple[str, Mapping]]:
    """Yield the place and the config of every head of a model that tells classes apart."""
    roi_head = model.get('roi_head') or {}
    places: list[tuple[str, Any]] = [
        *((f'model.roi_head.{name}', roi_head.get(name)) for name in ('bbox_head', 'mask_head')),
        *(
            (f'model.{name}', model.get(name))
            for name in ('bbox_head', 'decode_head', 'auxiliary_head')
        ),
    ]
    for option, heads in places:
        if isinstance(heads, Mapping):
            yield option, heads
        elif isinstance(heads, list | tuple):
            yield from ((f'{option}.{number}', head) for number, head in enumerate(heads))
