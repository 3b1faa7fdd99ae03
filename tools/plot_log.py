"""Plot loss and validation metrics of one or more training runs.

python tools/plot_log.py work_dirs/quickstart
python tools/plot_log.py work_dirs/a work_dirs/b --labels baseline ours --out both.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmgcvit.engine import run_tool
from mmgcvit.errors import UserError
from mmgcvit.visualization import plot_training_curves


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('logs', nargs='+', metavar='WORK_DIR', help='a work dir or scalars.json')
    parser.add_argument('--out', help='output PNG file (default: curves.png in the first WORK_DIR)')
    parser.add_argument(
        '--labels', nargs='+', help='one name per run (default: names of the work dirs)'
    )
    args = parser.parse_args(argv)
    first = Path(args.logs[0])
    out = args.out or (first.parent if first.is_file() else first) / 'curves.png'
    try:
        print(plot_training_curves(args.logs, out, args.labels))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


if __name__ == '__main__':
    run_tool(main)
