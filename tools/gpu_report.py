"""Measure everything that matters on a GPU in ten minutes, and write a report.

    python tools/gpu_report.py                      # on a machine with one or several GPUs
    python tools/gpu_report.py --parts tests,trainings --minutes 5
    python tools/gpu_report.py --device cpu         # a rehearsal, whose numbers mean nothing

The report is a page in Markdown with a picture, and all numbers as JSON. A part that fails or does
not fit into the time is reported with the reason. See docs/gpu/README.md.
"""

if __name__ == '__main__':
    import _signals  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmgcvit.analysis.gpu_report import GPU, PARTS, REHEARSAL, write_report
from mmgcvit.engine import run_tool
from mmgcvit.installed import resources


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--device',
        choices=['cuda', 'cpu'],
        default='cuda',
        help='cpu for a rehearsal with small networks and images (default: %(default)s)',
    )
    parser.add_argument('--parts', help=f'parts to measure (default: {",".join(PARTS)})')
    parser.add_argument(
        '--minutes',
        type=float,
        default=10,
        help='time for the whole report (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FOLDER',
        help='folder of the report (default: docs/gpu in a checkout, gpu_reports otherwise; '
        'work_dirs/gpu_report for a rehearsal)',
    )
    args = parser.parse_args(argv)
    docs = resources() / 'docs' / 'gpu'
    default = docs if docs.is_dir() else Path('gpu_reports')
    rehearsal = args.device == 'cpu'
    out = args.out or (Path('work_dirs/gpu_report') if rehearsal else default)
    parts = args.parts.split(',') if args.parts else None
    plan = REHEARSAL if rehearsal else GPU
    print(f'report: {write_report(plan, out, args.minutes, parts)}')


if __name__ == '__main__':
    run_tool(main)
