"""Run all checks of a config."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ...errors import UserError, describe
from ...mmcv_ops import require_operators
from ...registry import set_default_scope
from ..wrappers import dataset_configs
from .classifiers import CLASSIFIERS, folder_labels
from .coco import COCO
from .config import CONFIG, Setup, class_counts
from .image_folders import IMAGE_FOLDERS
from .label_maps import LABEL_MAPS
from .masks import SPLITS
from .panoptic import PANOPTIC
from .report import Check, Checks, Note, Problem, Report, Unchecked
from .split import Split


def name_of(check: Check) -> str:
    """Return the name of a check for users, such as 'empty-class'."""
    return check.__name__.replace('_', '-')


# datasets whose folders differ also have different classes
OF_CONFIG: Checks = {**CLASSIFIERS, **CONFIG, class_counts: (folder_labels,)}
NAMES = tuple(
    dict.fromkeys(
        name_of(check)
        for checks in (COCO, PANOPTIC, LABEL_MAPS, IMAGE_FOLDERS, OF_CONFIG)
        for check in checks
    )
)


def check_data(
    cfg: Config,
    samples: int | None = 50,
    fast: bool = False,
    splits: Sequence[str] = SPLITS,
    show: Callable[[str], None] = lambda text: None,
) -> Report:
    """Check the datasets of a config, and whether its heads and evaluators fit them.

    The config's key ``skip_checks`` is a list of names of checks that are not run.

    Args:
        cfg: Config of a detector, segmentor or classifier.
        samples: Number of items of each dataset to open, None for all.
        fast: Whether large annotation files are not read completely, and only some of many files
            are looked up, so that the check takes a second or two with datasets of any size.
        splits: Which of train, val and test.
        show: Called before each check with a line of text, to display the progress.

    Raises:
        UserError: If ``skip_checks`` has unknown names.
    """
    require_operators()  # mmdet and mmseg import them with their datasets
    set_default_scope(cfg.get('default_scope', 'mmengine'))
    skip = _read_skipped(cfg)
    report = Report()
    datasets = _find_splits(cfg, samples, fast, splits, show)
    for split in datasets:
        report.add(run_checks(_checks_of(split), split, split.names, skip, show))
        report.datasets.append((', '.join(split.names), split.counts))
    report.add(run_checks(OF_CONFIG, Setup(cfg, tuple(splits), datasets), (), skip, show))
    return report


def _checks_of(split: Split) -> Checks:
    if 'CocoPanopticDataset' in split.bases:
        return PANOPTIC
    if 'CocoDataset' in split.bases:
        return COCO
    return IMAGE_FOLDERS if 'CustomDataset' in split.bases else LABEL_MAPS


def _read_skipped(cfg: Config) -> set[str]:
    skip = cfg.get('skip_checks') or []
    skip = [skip] if isinstance(skip, str) else skip
    unknown = [name for name in skip if name not in NAMES]
    if unknown:
        raise UserError(
            f'skip_checks names {unknown[0]!r}, which is not a check: choose from '
            f'{", ".join(NAMES)}'
        )
    return set(skip)


def run_checks(
    checks: Checks,
    subject: Any,
    splits: Sequence[str],
    skip: set[str],
    show: Callable[[str], None],
) -> list[Problem | Note]:
    """Run checks in order.

    Args:
        checks: Each check with the checks that have to succeed first.
        subject: The split or the config to check.
        splits: Names of the splits, with which the messages begin.
        skip: Names of checks that are not run.
        show: See :func:`check_data`.
    """
    results: list[Problem | Note] = []
    failed: set[Check] = set()
    where = f'{", ".join(splits)}: ' if splits else ''
    for check, needed in checks.items():
        name = name_of(check)
        if failed.intersection(needed):
            failed.add(check)
        if check in failed or name in skip:
            continue
        show(f'{where}{name}')
        found: list[Problem | Note] = []
        try:
            found += check(subject) or ()
        except Unchecked as reason:
            found.append(Note(f'not checked, {reason}'))
            failed.add(check)
        except Exception as error:  # what cannot be checked may still train
            found.append(Note(f'{name} could not be checked ({describe(error)})'))
            failed.add(check)
        for each in found:
            if isinstance(each, Note):
                results.append(Note(f'{where}{each.text}'))
                continue
            text = f'[{name}] {where}{each.text}'
            results.append(Problem(text, each.stops, name, tuple(splits)))
            if each.stops:
                failed.add(check)
    return results


def _find_splits(
    cfg: Config,
    samples: int | None,
    fast: bool,
    splits: Sequence[str],
    show: Callable[[str], None],
) -> list[Split]:
    found: list[Split] = []
    boxes_only: set[str] = set()
    for name in splits:
        loader = cfg.get(f'{name}_dataloader')
        if not loader:
            continue
        for option, leaf in dataset_configs(loader['dataset'], f'{name}_dataloader.dataset'):
            same = next((split for split in found if split.leaf == leaf), None)
            if same is None:
                found.append(Split(cfg, [name], option, leaf, samples, fast, boxes_only, show))
            elif name not in same.names:
                same.names.append(name)
    return found


def require_data(cfg: Config, splits: Sequence[str] | None = None) -> None:
    """Check a config's data, and end every process if training or testing would fail.

    The first process checks, the others wait for the result: call it in all of them, once they
    are connected.

    Args:
        cfg: Config of a training or test.
        splits: Which of train, val and test; by default those that a training reads.

    Raises:
        UserError: In the first process, with a line for each reason.
        SystemExit: In the other processes, with exit code 1.
    """
    found: list[str | None] = [None]
    if is_main_process():
        found = [_errors(cfg, splits or (('train', 'val') if cfg.get('val_cfg') else ('train',)))]
    broadcast_object_list(found)
    if found[0]:
        if not is_main_process():
            raise SystemExit(1)
        raise UserError(found[0])


def _errors(cfg: Config, splits: Sequence[str]) -> str | None:
    try:
        report = check_data(cfg, samples=3, fast=True, splits=splits)
    except UserError as error:
        return str(error)
    except Exception as error:  # the other processes wait, and it may train nevertheless
        print_log(f'the data could not be checked ({describe(error)})', 'current', logging.WARNING)
        return None
    for note in report.notes:
        print_log(note, 'current')
    for problem in report.problems:
        if not problem.stops:
            print_log(problem.text, 'current', logging.WARNING)
    stopping = [problem.text for problem in report.problems if problem.stops]
    if len(stopping) < 2:
        return ''.join(stopping)
    return '\n'.join([f'{len(stopping)} problems with the data:', *stopping])
