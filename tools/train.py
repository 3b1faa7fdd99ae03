"""Train a detector, segmentor or classifier.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--auto-scale-lr]
        [--no-rehearsal]

For several processes, use tools/dist_train.sh or tools/slurm_train.sh.
"""

from mmgcvit.engine import (
    RehearseValidation,
    adapt_amp,
    adapt_lr_scaling,
    build_runner,
    load_config,
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
        help='resume from a checkpoint; without a path, resume from the newest complete one in the '
        'work dir, or start from the beginning if there is none',
    )
    parser.add_argument(
        '--amp',
        dest='options',
        action='append_const',
        const=adapt_amp,
        help='mixed precision: on a GPU, float16, or bfloat16 with --cfg-options '
        'optim_wrapper.dtype=bfloat16; on a CPU, bfloat16 for the layers of the backbone, neck and '
        'two-stage heads',
    )
    parser.add_argument(
        '--auto-scale-lr',
        dest='options',
        action='append_const',
        const=adapt_lr_scaling,
        help="scale the learning rate with the batch size, based on the config's base_batch_size",
    )
    parser.add_argument(
        '--no-rehearsal',
        action='store_true',
        help='do not validate two batches before the training begins',
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    if args.resume:
        cfg.resume = args.resume
    runner = build_runner(cfg, *(args.options or ()))
    require_data(cfg)
    if not args.no_rehearsal:
        runner.register_hook(RehearseValidation())
    runner.train()


if __name__ == '__main__':
    run_tool(main)
