"""Run a training step again that had a bad loss or raised an error.

    python tools/replay.py WORK_DIR/failed_step_iter_N.pth [--device cpu]

Prints the losses, the first module whose output is not finite, the gradient norms and the operation
that anomaly detection finds. The exit code is 0 if the step failed again in the same way.
"""

import argparse
import sys

from mmgcvit.engine import run_tool
from mmgcvit.engine.replay import replay


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', help='failed_step_iter_N.pth in the work dir of the training')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: the GPU if there is one)')
    parser.add_argument(
        '--checkpoint', help='use the weights of this checkpoint instead of those in the file'
    )
    parser.add_argument(
        '--allow-imports',
        action='store_true',
        help="import the config's custom_imports and use any class that the file names; only for "
        'files that you trust, because this can execute code that the file chooses',
    )
    args = parser.parse_args()
    if not replay(args.file, args.device, args.checkpoint, args.allow_imports):
        sys.exit(1)


if __name__ == '__main__':
    run_tool(main)
