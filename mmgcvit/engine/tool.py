"""Arguments, errors and exit codes of command-line tools."""

import argparse
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mmengine.dist import is_distributed
from mmengine.logging import MMLogger

from ..cli import as_commands
from ..errors import describe, printable
from ..installed import require_own_version
from ..mmcv_ops import enable
from .exchange import OTHER_ENDED, Exchange, is_of_connection
from .known_errors import known_error
from .launch import end_processes, end_with_parent, process_rank
from .options import ReadOptions
from .workers import gives_way, sigterm_received

# Seconds after which the first process has reported an error that all processes have: their
# launcher then ends the others. torchrun 2.1 looks at its processes every 5 seconds.
TIME_TO_REPORT = 10


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function. Print an error as the last thing on the screen.

    An error that the user can correct is printed on one line, and its traceback is written to the
    log file. Other errors are printed with a traceback. The exit code is 1 for errors and 130 for
    Ctrl-C.

    Of several processes, only the one with the first error prints it, with the numbers of the
    processes that have the same error.
    """
    if gives_way(signal.getsignal(signal.SIGINT)):  # of tools/_signals.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _prepare()
    if process_rank() and not sys.warnoptions:
        warnings.simplefilter('ignore')  # the first process shows the same warnings
    try:
        require_own_version(getattr(sys.modules['__main__'], '__file__', None))
        main()
        if is_distributed():
            end_processes()
    except SystemExit as end:
        if isinstance(end.code, str):
            _leave(1, end.code)
        if end.code:
            _leave(end.code)
        raise
    except KeyboardInterrupt:
        _leave(130, '' if process_rank() else '\ninterrupted')
    except Exception as error:
        if _was_interrupted(error):
            _leave(130, '' if process_rank() else '\ninterrupted')
        report = traceback.format_exc().rstrip()
        known = known_error(error)
        _write_to_log(f'{report}\nerror: {known}' if known else report)
        if exchange := Exchange.current:
            whole = f'error: {known}' if known else report
            message, waits = exchange.report(error, known or describe(error), whole)
            _leave(1, message, waits)
        rank = process_rank()
        if known:
            _leave(1, f'error: {known} (process {rank})' if rank else f'error: {known}')
        other_ended = is_distributed() and is_of_connection(error, OTHER_ENDED)
        _leave(1, f'process {rank}:\n{report}' if rank else report, other_ended or None)


def prepare_child() -> None:
    """Prepare a process that a tool spawns, which then also ends with the tool."""
    end_with_parent()
    _prepare()


def _prepare() -> None:
    enable()
    # mmengine imports it, several times per config; check_env.py reports setuptools without it
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C led to an error: mmengine replaces a KeyboardInterrupt in yapf."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _leave(code: int, message: str = '', other_reports: bool | None = None) -> NoReturn:
    """Exit this process, even if other processes of the run never reach the same point.

    The process group cannot be destroyed then, because that waits for pending collectives. A normal
    exit of the interpreter is not safe either, because gloo's threads may still hold tensors: with
    torch 2.14, one of six such processes aborted with "terminate called without an active
    exception".

    Args:
        code: Exit code.
        message: What to print, if anything.
        other_reports: Whether another process has caused the error, and reports it. None if that is
            not known; the first process then reports an error that all of them may have.
    """
    if other_reports and sigterm_received():
        message = ''  # the launcher has seen the other process end, and sends no second SIGTERM
    elif other_reports or (other_reports is None and process_rank() and code in (1, 2)):
        # torchrun, srun and tools/_launch.py end this process after the one that reports the error:
        # the first one, or else the one with the lowest local rank
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(TIME_TO_REPORT + 0.5 * int(os.environ.get('LOCAL_RANK') or 0))
    if message:
        # in one call, so that lines of several processes do not mix
        sys.stderr.write(f'{printable(as_commands(message))}\n')
        sys.stderr.flush()
    if not is_distributed():
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def _write_to_log(text: str) -> None:
    """Write to the log file of the run, if there is one, and not to the screen."""
    logger = MMLogger.get_current_instance()
    logging.raiseExceptions = False  # if the disk is full, the error itself is still printed
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(
                logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
            )


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are printed once: all processes of a run have the same arguments."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2. The first process prints the usage and the error."""
        if process_rank():
            sys.exit(2)
        super().error(as_commands(message))


def config_parser(
    description: str | None, before: Sequence[tuple[str, str]] = ()
) -> argparse.ArgumentParser:
    """Return the parser of a tool that reads a config, with the common arguments.

    Args:
        description: Text of ``--help``.
        before: Name and help of each positional argument before the config.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (
        *before,
        ('config', 'path of a config file, or name of a config of mmgcvit'),
    ):
        parser.add_argument(name, help=text)
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
        help='job launcher; set by the scripts for several processes (default: %(default)s)',
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
        values: Any,  # int; argparse allows others
        option_string: str | None = None,
    ) -> None:
        os.environ.setdefault('LOCAL_RANK', str(values))
