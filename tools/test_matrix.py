"""Run the tests in environments with other versions, and write the table in docs/support.md.

tools/test_matrix.sh calls this script after setting up the environment.

    bash tools/test_matrix.sh                          # all rows, one after the other
    bash tools/test_matrix.sh --row torch21 --row py312
    bash tools/test_matrix.sh --row torch21 --keep --tests tests/ops   # look into a failure

Each row has its own environment of about 6 GB, which is removed afterwards. Results are kept for
the state of the code: a run that was interrupted continues with the next row.
"""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

from mmgcvit.analysis.matrix import (
    ROWS,
    Result,
    Store,
    cache_folder,
    expected_seconds,
    read_results,
    require_room,
    run_row,
    write_page,
)
from mmgcvit.engine import run_tool
from mmgcvit.errors import UserError, did_you_mean
from mmgcvit.progress import duration

CHECKOUT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.list:
        for row in ROWS.values():
            print(f'{row.name:10} Python {row.python:5} {row.title}')
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the row's processes too
    cache = cache_folder()
    tier = 'all' if args.all else 'quick'
    store = Store(cache / 'matrix', CHECKOUT)
    known = read_results(CHECKOUT)
    rows = [ROWS[name] for name in dict.fromkeys(args.row or ROWS)]
    results: list[Result] = []
    for number, row in enumerate(rows, 1):
        result = None if args.fresh or args.tests else store.get(row.name, tier)
        if result is None:
            seconds = expected_seconds(rows[number - 1 :], known)
            print(f'[{number}/{len(rows)}] {row.name}: {row.title}', flush=True)
            environment = cache / 'envs' / f'matrix-{row.name}'
            require_room(environment.parent)
            begun = Result(row.name, tier, store.commit, date.today().isoformat())
            log = store.folder / f'{row.name}-{tier}.log'
            show = partial(progress, seconds, time.monotonic())
            result = run_row(row, CHECKOUT, environment, log, begun, args.tests, show)
            if not args.keep:
                shutil.rmtree(environment, ignore_errors=True)
            if result.reason:
                print(f'output of all commands: {log}', flush=True)
        counts = f'{result.passed} passed, {result.skipped} skipped, {result.failed} failed'
        print(f'{row.name}: {counts} in {duration(result.seconds)}; {result.verdict}', flush=True)
        results.append(result)
        known[row.name] = result
        if not args.tests:
            store.put(result)
            write_page(CHECKOUT, results)
    if any(result.reason for result in results):
        sys.exit(1)


def progress(seconds: float | None, start: float, text: str) -> None:
    left = None if seconds is None else max(0, seconds - (time.monotonic() - start))
    print(f'  {text}{"" if left is None else f"; about {duration(left)} left"}', flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='tools/test_matrix.sh',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--row', action='append', metavar='NAME', help='run this row; repeatable (default: all)'
    )
    parser.add_argument('--list', action='store_true', help='print the rows and exit')
    parser.add_argument('--all', action='store_true', help='also run the slow tests')
    parser.add_argument('--fresh', action='store_true', help='repeat rows that have a result')
    parser.add_argument(
        '--keep', action='store_true', help='do not remove the environments: 6 GB per row'
    )
    parser.add_argument(
        '--tests',
        nargs=argparse.REMAINDER,
        default=[],
        help='the last option: only run these tests (arguments of pytest), and write no results',
    )
    args = parser.parse_args(argv)
    for name in args.row or ():
        if name not in ROWS:
            hint = did_you_mean(name, ROWS)
            raise UserError(f'--row {name} is not a row{hint}: choose from {", ".join(ROWS)}')
    return args


if __name__ == '__main__':
    run_tool(main)
