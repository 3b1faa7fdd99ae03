"""Train small GC ViT, Swin and ConvNeXt with one recipe on drawn shapes, and compare them.

    python tools/draw_shapes.py data/shapes
    python tools/compare.py           # 18 trainings: about 1.5 hours on one CPU core
    python tools/compare.py --quick   # one seed and 60 iterations, to try it
    python tools/compare.py --time    # measure the time per iteration again

Trainings that are finished are not repeated, and interrupted ones are continued. Curves, tables and
figures are written to the folder --out, after all trainings. See docs/comparison.md.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmgcvit.analysis.comparison import (
    BACKBONES,
    METHODS,
    Plan,
    draw,
    measure_times,
    read_curves,
    read_times,
    report,
    require_equal_parameters,
    train_all,
    write_curves,
    write_page,
)
from mmgcvit.engine import run_tool
from mmgcvit.engine.options import ReadOptions
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically

PAGE, PICTURES = Path('docs/comparison.md'), Path('docs/images')
OUT = 'work_dirs/comparison'
QUICK = dict(seeds=1, iterations=60)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    warnings.filterwarnings('ignore', module='mmseg')  # about defaults of its own configs
    plan = Plan(
        args.out, args.tasks, args.backbones, args.seeds, args.iterations, args.cfg_options or {}
    )
    configs = plan.configs()
    params = require_equal_parameters(configs)
    if not args.time:
        train_all(plan, configs)
    curves = read_curves(plan)
    if not curves:
        raise UserError(f'{args.out} has no finished training: run this without --time first')
    timing = read_times(args.out)
    left = {
        (task, backbone): cfg
        for (task, backbone), cfg in configs.items()
        if args.time or set(args.backbones) - set(timing.get(task, {}).get('seconds', ()))
    }
    timing |= measure_times(left, args.out, args.rounds)
    text = report(curves, params, timing)
    print(f'\n{text}\n')
    files = write_curves(args.out, curves, timing)
    files += [write_atomically(args.out / 'results.md', text.encode())]
    files += draw(args.out, curves, timing)
    if args.docs:
        files += draw(PICTURES, curves, timing)
        files += [write_page(PAGE, report(curves, params, timing, f'{PICTURES.name}/'))]
    print('\n'.join(f'wrote {file}' for file in files))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        help=f'folder of trainings and results (default: {OUT}, with --quick {OUT}_quick)',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        default=list(METHODS),
        metavar='TASK',
        help=f'{" or ".join(METHODS)} (default: both)',
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        default=list(BACKBONES),
        metavar='NAME',
        help=f'{", ".join(BACKBONES)} (default: all)',
    )
    parser.add_argument('--seeds', type=int, help='trainings per task and backbone (default: 3)')
    parser.add_argument(
        '--iterations', type=int, help="iterations per training (default: the configs')"
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='{seeds} seed and {iterations} iterations, unless they are given'.format(**QUICK),
    )
    parser.add_argument(
        '--time',
        action='store_true',
        help='do not train; measure the time per iteration, on an idle machine, and write the '
        'results again',
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=30,
        help='training steps per backbone when the time is measured (default: %(default)s)',
    )
    parser.add_argument('--docs', action='store_true', help=f'also update {PAGE} and its figures')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ReadOptions,
        metavar='KEY=VALUE',
        help='override settings of all configs, for example optim_wrapper.optimizer.lr=5e-4',
    )
    args = parser.parse_args(argv)
    defaults = QUICK if args.quick else dict(seeds=Plan.seeds, iterations=None)
    defaults = defaults | dict(out=Path(f'{OUT}_quick' if args.quick else OUT))
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.rounds < 2:
        raise UserError(f'--rounds {args.rounds} is not allowed: use an integer of at least 2')
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f'--out {args.out} is a file: use a folder, which is created if needed')
    if args.docs and not PAGE.is_file():
        raise UserError(f'--docs: there is no {PAGE} here; run this in the root of the repository')
    return args


if __name__ == '__main__':
    run_tool(main)
