"""Train a detector or segmentor: `python tools/train.py CONFIG [--work-dir DIR] [--resume]`."""

import argparse

from mmengine.config import DictAction

from mmgcvit.engine import build_runner, load_config, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config file')
    parser.add_argument('--work-dir', help='where checkpoints and logs go; work_dirs/CONFIG_NAME')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint, or without a path from the last one in the work dir',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, as optim_wrapper.optimizer.lr=1e-4',
    )
    args = parser.parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options)
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    build_runner(cfg).train()


if __name__ == '__main__':
    run_tool(main)
