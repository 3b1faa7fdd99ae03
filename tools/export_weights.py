"""Write the weights of a training's checkpoint to a file that any program reads.

python tools/export_weights.py work_dirs/CONFIG_NAME/epoch_36.pth weights.pth

Nothing in the checkpoint is executed. The new file holds weights and class names, and is a third
of the size; a training cannot be resumed from it.
"""

import argparse
from collections.abc import Sequence

from mmgcvit.engine import check_checkpoint, run_tool
from mmgcvit.weights import export_weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument('out', help='the file to write')
    args = parser.parse_args(argv)
    print(export_weights(check_checkpoint(args.checkpoint), args.out))


if __name__ == '__main__':
    run_tool(main)
