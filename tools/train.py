"""Train a detector, segmentor or classifier.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--auto-scale-lr]
        [--log-to tensorboard|wandb|mlflow] [--no-rehearsal]

For several processes, use tools/dist_train.sh or tools/slurm_train.sh. tools/rehearse.py tries all
steps of a training in about a minute.
"""

if __name__ == '__main__':
    import _signals  # noqa: F401

from mmgcvit.engine import (
    CompareData,
    RehearseValidation,
    build_runner,
    record_failed_step,
    require_data,
    run_tool,
)
from mmgcvit.engine.resume import warn_of_earlier_training
from mmgcvit.engine.training_options import training_config, training_parser
from mmgcvit.visualization import adapt_drawing


def main() -> None:
    parser = training_parser(__doc__)
    parser.add_argument(
        '--no-rehearsal',
        action='store_true',
        help='do not validate two batches before the training begins',
    )
    args = parser.parse_args()
    cfg, options = training_config(args)
    runner = build_runner(cfg, adapt_drawing, *options)
    warn_of_earlier_training(cfg)
    require_data(cfg)
    runner.register_hook(CompareData())
    if not args.no_rehearsal:
        runner.register_hook(RehearseValidation())
    with record_failed_step(runner):
        runner.train()


if __name__ == '__main__':
    run_tool(main)
