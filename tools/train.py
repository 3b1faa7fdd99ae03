"""Train a detector or segmentor: `python tools/train.py CONFIG [--work-dir DIR] [--resume]`.

Several processes: tools/dist_train.sh and tools/slurm_train.sh.
"""

from mmgcvit.engine import (
    build_runner,
    enable_lr_scaling,
    load_config,
    request_amp,
    require_data,
    run_tool,
    runner_parser,
)


def main() -> None:
    parser = runner_parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, or without a path from the last whole one in the work dir',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on a GPU, or with --cfg-options '
        'optim_wrapper.dtype=bfloat16; on a CPU bfloat16 for backbone and neck',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate with the batch size, from the config's base_batch_size",
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    if args.amp:
        request_amp(cfg)
    if args.auto_scale_lr:
        enable_lr_scaling(cfg)
    if args.resume:
        cfg.resume = args.resume
    runner = build_runner(cfg)
    require_data(cfg)
    runner.train()


if __name__ == '__main__':
    run_tool(main)
