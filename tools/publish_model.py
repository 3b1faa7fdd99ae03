"""Write the weights of a training checkpoint to a file that any program can read.

python tools/publish_model.py work_dirs/CONFIG_NAME/epoch_36.pth weights.pth

writes weights-1a2b3c4d.pth, with the first digits of its hash in the name, and prints the name. No
code in the checkpoint is executed. The new file contains the weights and class names, and its size
is a third of the checkpoint's. It cannot be used to resume training.
"""

import argparse
from collections.abc import Sequence

from mmgcvit.engine import check_checkpoint, run_tool
from mmgcvit.weights import publish_model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument('out', help='output file; 8 digits of its hash are added to the name')
    args = parser.parse_args(argv)
    print(publish_model(check_checkpoint(args.checkpoint), args.out))


if __name__ == '__main__':
    run_tool(main)
