"""Command-line tools: their arguments, and how they end."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed

from ..errors import UserError
from ..mmcv_ops import enable
from .options import ReadOptions


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function; a UserError is printed in one line, with exit code 1."""
    enable()
    try:
        main()
    except UserError as error:
        _leave(1, f'error: {error}')
    except OSError as error:
        # others, such as those of a network or a data worker, are printed in full
        _leave(1, f'error: {error}' if error.filename else traceback.format_exc().rstrip())
    except KeyboardInterrupt:
        _leave(130, '\ninterrupted')
    except Exception:
        _leave(1, traceback.format_exc().rstrip())
    if _has_others():
        # all at once: under Slurm the first process hosts the store that connects the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _leave(code: int, message: str) -> NoReturn:
    """End this process, even if others of its training never reach the same point.

    Their process group cannot be destroyed then, because that waits for pending collectives. Nor
    can it be left to the interpreter, because gloo's threads may still hold tensors: with torch
    2.14 one of six such processes aborted with "terminate called without an active exception".
    """
    sys.stderr.write(f'{message}\n')  # in one call, so that lines of several processes do not mix
    sys.stderr.flush()
    if not _has_others():
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _has_others() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that reads a config, with the arguments of all such tools."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ReadOptions,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, for example '
        'optim_wrapper.optimizer.lr=1e-4; a,b or [a,b] is a list, (a,b) a tuple, {a: b} a dict; '
        'quote text that looks like a number or a list: "KEY=\'1\'"',
    )
    return parser


def runner_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that trains or tests, in one process or in several."""
    parser = config_parser(description)
    parser.add_argument(
        '--work-dir',
        help="folder of checkpoints and logs (default: the config's, else work_dirs/CONFIG_NAME)",
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='what started the processes; tools/dist_*.sh and tools/slurm_*.sh set it '
        '(default: %(default)s)',
    )
    # torch.distributed.launch passes the number of the process in either spelling
    parser.add_argument(
        '--local-rank', '--local_rank', type=int, action=SetLocalRank, help=argparse.SUPPRESS
    )
    return parser


class SetLocalRank(argparse.Action):
    """Set the environment variable ``LOCAL_RANK``, unless the launcher has set it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: int,
        option_string: str | None = None,
    ) -> None:
        os.environ.setdefault('LOCAL_RANK', str(values))
