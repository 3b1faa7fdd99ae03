"""How a command-line tool begins and ends."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed
from mmengine.config import DictAction

from ..errors import UserError
from ..mmcv_ops import enable


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function; what the user can put right ends in one line and exit code 1."""
    enable()
    try:
        main()
    except UserError as error:
        _leave(1, f'error: {error}')
    except OSError as error:
        # others, as of a network or of a data worker, are told in full
        _leave(1, f'error: {error}' if error.filename else traceback.format_exc().rstrip())
    except KeyboardInterrupt:
        _leave(130, '\ninterrupted')
    except Exception:
        _leave(1, traceback.format_exc().rstrip())
    if _has_others():
        # together: under Slurm the first process holds what connects the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _leave(code: int, message: str) -> NoReturn:
    """End this process, also where the others of its training may never come to take their leave.

    Their group cannot be destroyed then: that waits for what was begun with them. And it cannot be
    left to the interpreter, as gloo's threads may still hold tensors: with torch 2.14 one of six
    such processes ended in an abort, "terminate called without an active exception".
    """
    sys.stderr.write(f'{message}\n')  # at once, for lines of several processes not to mix
    sys.stderr.flush()
    if not _has_others():
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _has_others() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that reads a config, with what all of these tools take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, as optim_wrapper.optimizer.lr=1e-4',
    )
    return parser


def runner_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that trains or tests, in one process or in several."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='where checkpoints and logs go; work_dirs/CONFIG_NAME')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='what started the processes; tools/dist_*.sh and tools/slurm_*.sh set it',
    )
    return parser
