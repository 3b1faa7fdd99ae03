"""Arguments and exit codes of command-line tools."""

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
    """Run a tool's main function. A UserError is printed on one line, with exit code 1."""
    enable()
    try:
        main()
    except UserError as error:
        _leave(1, f'error: {error}')
    except OSError as error:
        # other errors, for example of a network or a data worker, are printed with a traceback
        _leave(1, f'error: {error}' if error.filename else traceback.format_exc().rstrip())
    except KeyboardInterrupt:
        _leave(130, '\ninterrupted')
    except Exception:
        _leave(1, traceback.format_exc().rstrip())
    if _has_others():
        # together: under Slurm, the first process hosts the store that connects the others
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _leave(code: int, message: str) -> NoReturn:
    """Exit this process, even if other processes of the run never reach the same point.

    The process group cannot be destroyed then, because that waits for pending collectives. A normal
    exit of the interpreter is not safe either, because gloo's threads may still hold tensors: with
    torch 2.14, one of six such processes aborted with "terminate called without an active
    exception".
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
    """Return the parser of a tool that reads a config, with the common arguments."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ReadOptions,
        metavar='KEY=VALUE',
        help='override config settings, for example optim_wrapper.optimizer.lr=1e-4. Lists: a,b or '
        '[a,b]; tuples: (a,b); dicts: {a: b}. Quote text that looks like a number or a list: '
        '"KEY=\'1\'"',
    )
    return parser


def runner_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool that trains or tests, in one or several processes."""
    parser = config_parser(description)
    parser.add_argument(
        '--work-dir',
        help="folder of checkpoints and logs (default: the config's, or work_dirs/CONFIG_NAME)",
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='job launcher; set by tools/dist_*.sh and tools/slurm_*.sh (default: %(default)s)',
    )
    # torch.distributed.launch passes the local rank in either spelling
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
