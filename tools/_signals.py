"""One line for Ctrl-C, SIGTERM and a missing library while a tool imports its modules.

Tools import this module first. `run_tool` replaces the handler of Ctrl-C. That of SIGTERM stays
until a training saves a checkpoint when it receives SIGTERM.
"""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import NoReturn

PROCESS = os.getpid()  # not that of a data worker, which is a fork


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Print one line in the first process of a run, and end the process."""
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'
    size = os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_NTASKS') or '1'
    # launchers send SIGTERM also because another process has failed, which has printed its error
    is_cause = number == signal.SIGINT or size == '1'
    if os.getpid() == PROCESS and rank == '0' and is_cause:
        line = 'interrupted' if number == signal.SIGINT else 'stopped by SIGTERM'
        sys.stderr.write(f'\n{line}\n')
        sys.stderr.flush()
    if number == signal.SIGINT:
        os._exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # where signals are only delivered later


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught exception, on one line if it is that a library is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name != 'mmgcvit':
        from mmgcvit.installed import missing_library

        if missing := missing_library(error):
            sys.stderr.write(f'error: {missing}\n')
            return
    sys.__excepthook__(kind, error, trace)


sys.excepthook = report
# to any other handler, see mmgcvit/engine/tool.py
end.gives_way = True  # type: ignore[attr-defined]  # functions accept any attribute
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) == _handler:  # not if it is ignored, as under nohup
        signal.signal(_number, end)
