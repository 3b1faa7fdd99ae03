"""Draw the small shapes dataset in the layouts of COCO and ADE20K, or one for classification.

    python tools/draw_shapes.py data/shapes
    python tools/draw_shapes.py data/shapes --panoptic
    python tools/draw_shapes.py data/shape_classes --classes

With --panoptic, COCO panoptic annotations are written too, for Mask2Former and Panoptic FPN. With
--classes, each image shows one shape, in the folders of mmpretrain's CustomDataset.
A complete dataset with the same settings is not drawn again. See mmgcvit/datasets/.
"""

import argparse
from collections.abc import Sequence

from mmgcvit.datasets import Settings, draw_shape_classes, draw_shapes
from mmgcvit.engine import run_tool
from mmgcvit.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', help='folder of the dataset; created if it does not exist')
    for name, meaning in (
        ('num_train', 'number of training images'),
        ('num_val', 'number of validation images'),
        ('seed', 'seed of the dataset'),
    ):
        parser.add_argument(
            '--' + name.replace('_', '-'),
            type=int,
            default=getattr(Settings, name),
            help=f'{meaning} (default: %(default)s)',
        )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        '--panoptic',
        action='store_true',
        help='also write COCO panoptic annotations, with the background as stuff',
    )
    kinds.add_argument(
        '--classes',
        action='store_true',
        help='draw one shape per image, in folders of classes for classification',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace an existing drawn dataset that is incomplete or has different settings',
    )
    args = parser.parse_args(argv)
    try:
        settings = (args.root, args.num_train, args.num_val, args.seed, args.overwrite)
        if args.classes:
            draw_shape_classes(*settings)
        else:
            draw_shapes(*settings, panoptic=args.panoptic)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


if __name__ == '__main__':
    run_tool(main)
