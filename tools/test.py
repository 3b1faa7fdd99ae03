"""Evaluate a checkpoint on the config's test set.

    python tools/test.py CONFIG CHECKPOINT [--tta | --tiles [SIZE]] [--out FILE.pkl]
        [--show-dir DIR]

For several processes, use tools/dist_test.sh or tools/slurm_test.sh.
"""

from functools import partial

if __name__ == '__main__':
    import _signals  # noqa: F401

from mmgcvit.engine import (
    CompareData,
    adapt_test,
    build_runner,
    check_checkpoint,
    load_config,
    require_data,
    run_tool,
    runner_parser,
)
from mmgcvit.errors import UserError
from mmgcvit.evaluation import (
    adapt_dump,
    adapt_tiles,
    adapt_tta,
    add_tile_options,
    keep_polygons,
    tile_options,
)
from mmgcvit.visualization import PaintPredictions, adapt_drawing


def main() -> None:
    parser = runner_parser(__doc__)
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to FILE.pkl')
    parser.add_argument(
        '--show-dir', metavar='DIR', help='save every image with its predictions in DIR'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: merge the predictions for several views of each image '
        '(detectors: only boxes)',
    )
    add_tile_options(parser)
    args = parser.parse_args()
    if args.tta and args.tiles is not None:
        raise UserError('--tta and --tiles cannot be combined: remove one of them')
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.load_from = check_checkpoint(args.checkpoint)
    options = [adapt_test, adapt_drawing]
    if args.out:
        options.append(partial(adapt_dump, path=args.out))
    if args.tta:
        options.append(adapt_tta)
    if tiles := tile_options(args):
        keep_polygons(cfg)
        options.append(partial(adapt_tiles, options=tiles))
    runner = build_runner(cfg, *options)
    require_data(cfg, splits=('test',))
    runner.register_hook(CompareData())
    if args.show_dir:
        runner.register_hook(PaintPredictions(args.show_dir))
    runner.test()


if __name__ == '__main__':
    run_tool(main)
