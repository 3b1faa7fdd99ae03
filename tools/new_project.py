"""Write a config for a folder of annotated images, check the data, and rehearse the training.

    python tools/new_project.py DIR --data FOLDER

FOLDER contains one of these formats. Nothing is written to it.

    COCO       .json files with images, annotations and categories
    YOLO       a .txt file per image, with boxes or polygons, and data.yaml or classes.txt
    VOC        an .xml file per image
    masks      images, and label maps with the same names in a folder such as masks/
    folders    a folder of images per class

Without a validation split, a fifth of the images is chosen at random. config.py and converted
annotations are written to DIR.
"""

import argparse
import shlex
from collections.abc import Sequence
from functools import partial

if __name__ == '__main__':
    import _signals  # noqa: F401

from mmgcvit.cli import as_commands
from mmgcvit.engine import check_data, load_config, rehearse, run_tool
from mmgcvit.errors import UserError
from mmgcvit.evaluation import adapt_tta
from mmgcvit.models import ARCHS
from mmgcvit.projects import FORMATS, new_project
from mmgcvit.task import TASKS
from mmgcvit.visualization import PaintPredictions, adapt_drawing


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'dir', metavar='DIR', help='folder of the project, which must be new or empty'
    )
    parser.add_argument(
        '--data', required=True, metavar='FOLDER', help='folder of images and annotations'
    )
    parser.add_argument(
        '--task',
        choices=[task.name for task in TASKS],
        help='what to train, if FOLDER has annotations for several tasks',
    )
    parser.add_argument(
        '--format', choices=FORMATS, help='which annotations to use, if FOLDER has several'
    )
    parser.add_argument(
        '--arch', choices=ARCHS, default='tiny', help='size of the backbone (default: %(default)s)'
    )
    parser.add_argument(
        '--epochs',
        type=int,
        metavar='N',
        help='number of epochs (default: depends on the number of images)',
    )
    parser.add_argument(
        '--weights',
        metavar='CHECKPOINT',
        help="path or URL of the backbone's weights, or none for random ones (default: NVIDIA's "
        'ImageNet weights, which are not for commercial use)',
    )
    parser.add_argument(
        '--no-rehearsal', action='store_true', help='only check the data, which takes seconds'
    )
    args = parser.parse_args(argv)
    config = new_project(
        *(args.dir, args.data, args.task, args.format, args.arch, args.epochs, args.weights)
    )
    cfg = load_config(config)
    report = check_data(cfg)
    print(report.text(), flush=True)
    command = shlex.quote(str(config))
    failed = any(problem.stops for problem in report.problems)
    if not (failed or args.no_rehearsal):
        paint = partial(PaintPredictions, strict=True)
        failed = rehearse(cfg, adapt_drawing, tta=adapt_tta, paint=paint) > 0
    if failed:
        raise UserError(
            f'the project was written, but cannot be trained yet: correct the problems above, then '
            f'run python tools/rehearse.py {command}'
        )
    print(as_commands(f'next: python tools/train.py {command}'))


if __name__ == '__main__':
    run_tool(main)
