"""Check a config's data before training: files, annotations, images, classes, value ranges.

python tools/check_data.py configs/detection/custom_coco.py
python tools/check_data.py CONFIG --samples 500 --cfg-options train_dataloader.dataset.data_root=DIR

All problems are listed, each with the name of its check and its remedy; the exit code is 1 if there
are any. --cfg-options skip_checks=NAME,NAME switches checks off.
"""

import sys
from collections.abc import Sequence

from mmgcvit.engine import check_data, config_parser, load_config, run_tool
from mmgcvit.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__)
    parser.add_argument(
        '--samples',
        type=int,
        default=50,
        help='images to open per dataset (default: %(default)s)',
    )
    parser.add_argument('--full', action='store_true', help='open every image')
    args = parser.parse_args(argv)
    if args.samples < 1:
        raise UserError(f'--samples must be at least 1, got {args.samples}')
    cfg = load_config(args.config, options=args.cfg_options)
    report = check_data(cfg, None if args.full else args.samples, show=show)
    show('')
    print(report.text())
    if report.problems:
        number = len(report.problems)
        raise UserError(f'{number} problem{"s" * (number > 1)} found, listed above')


def show(text: str) -> None:
    """Show what is being checked, in one line of a terminal."""
    if sys.stderr.isatty():
        print(f'\r{text[:79]:<79}', end='\r', file=sys.stderr, flush=True)


if __name__ == '__main__':
    run_tool(main)
