"""Evaluate a checkpoint on the config's test set: `python tools/test.py CONFIG CHECKPOINT`.

Several processes: tools/dist_test.sh and tools/slurm_test.sh.
"""

import copy

from mmgcvit.engine import (
    build_runner,
    check_checkpoint,
    load_config,
    require_data,
    run_tool,
    runner_parser,
)
from mmgcvit.evaluation import dump_predictions, merge_views
from mmgcvit.visualization import PaintPredictions


def main() -> None:
    parser = runner_parser(__doc__)
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions there')
    parser.add_argument('--show-dir', metavar='DIR', help='paint every image there')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='merge several views of each image (test-time augmentation); of a detector boxes only',
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.load_from = check_checkpoint(args.checkpoint)
    as_configured = copy.deepcopy(cfg)
    # a checkpoint file holds the whole model: it is tested as a whole, however it was trained
    cfg.pop('runner_type', None)
    cfg.pop('strategy', None)
    if args.out:
        dump_predictions(cfg, args.out)
    if args.tta:
        merge_views(cfg)
    runner = build_runner(cfg)
    require_data(as_configured, splits=('test',))
    if args.show_dir:
        runner.register_hook(PaintPredictions(args.show_dir))
    runner.test()


if __name__ == '__main__':
    run_tool(main)
