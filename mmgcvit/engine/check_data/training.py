"""The fast part of the check, before a training or a test begins."""

import logging
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ...errors import UserError
from .config import check_data


def require_data(cfg: Config, splits: Sequence[str] | None = None) -> None:
    """Check a config's data, and end every process if they are bad.

    The first process looks, the others wait for what it found: call it on all of them, once they
    are connected.

    Args:
        cfg: Config of a training or test.
        splits: Which of train, val and test; by default those that a training reads.

    Raises:
        UserError: If training or test would fail; in the first process with a line for each reason.
    """
    found: list[str | None] = [None]
    if is_main_process():
        found = [_problems(cfg, splits or (('train', 'val') if cfg.get('val_cfg') else ('train',)))]
    broadcast_object_list(found)
    if found[0]:
        told = found[0] if is_main_process() else 'the data, see the error of the first process'
        raise UserError(told)


def _problems(cfg: Config, splits: Sequence[str]) -> str | None:
    try:
        report = check_data(cfg, samples=3, fast=True, splits=splits)
    except Exception as error:  # the other processes wait, and it may work all the same
        print_log(
            f'the data could not be checked ({type(error).__name__}: {error})',
            'current',
            logging.WARNING,
        )
        return None
    for problem in report.problems:
        if not problem.stops:
            print_log(problem.text, 'current', logging.WARNING)
    stopping = [problem.text for problem in report.problems if problem.stops]
    if len(stopping) < 2:
        return ''.join(stopping)
    return '\n'.join([f'{len(stopping)} problems with the data:', *stopping])
