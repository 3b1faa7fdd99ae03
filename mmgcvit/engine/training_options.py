"""Command-line options of a training, which its rehearsal has too."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config

from .adaptations import Adaptation, adapt_amp, adapt_lr_scaling
from .config import load_config
from .loggers import LOGGERS, log_to
from .tool import runner_parser


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``tools/train.py`` and ``tools/rehearse.py``."""
    parser = runner_parser(description)
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
        '--log-to',
        nargs='+',
        choices=LOGGERS,
        default=(),
        help='also log losses and metrics to these loggers; --resume continues their runs',
    )
    return parser


def training_config(args: argparse.Namespace) -> tuple[Config, Sequence[Adaptation]]:
    """Return the config and the adaptations that the arguments of a training select."""
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    cfg.launcher = args.launcher
    if args.resume:
        cfg.resume = args.resume
    if args.log_to:
        log_to(cfg, args.log_to)
    return cfg, args.options or ()
