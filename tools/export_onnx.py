"""Export a detector, segmentor or classifier to ONNX, with pre- and postprocessing.

    python tools/export_onnx.py CONFIG CHECKPOINT [--out FILE.onnx]

The input is an RGB image of any size. The outputs are boxes, scores, labels and masks, or a label
map, or the scores of the classes. docs/export.md lists the models and shows how to use the file.
"""

from collections.abc import Sequence
from pathlib import Path

from mmgcvit.deployment import (
    OnnxModel,
    build_graph,
    compare,
    export_onnx,
    open_images,
    require_out,
)
from mmgcvit.engine import config_parser, run_tool
from mmgcvit.errors import UserError
from mmgcvit.inference import load_trained


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__)
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument(
        '--out', metavar='FILE.onnx', help='output file (default: work_dirs/CONFIG_NAME.onnx)'
    )
    parser.add_argument(
        '--paste-masks',
        action='store_true',
        help='output masks of the size of the image, instead of small maps of probabilities inside '
        'the boxes',
    )
    parser.add_argument(
        '--no-resize',
        dest='resize',
        action='store_false',
        help='do not resize images in the graph. Resize them as in the test pipeline; boxes, masks '
        'and label maps are then relative to the resized image',
    )
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="images for the report (default: the config's test set, with its metrics)",
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=50,
        metavar='N',
        help='number of images in the report (default: %(default)s)',
    )
    parser.add_argument(
        '--no-report', action='store_true', help='do not compare the graph with PyTorch'
    )
    args = parser.parse_args(argv)
    out = Path(args.out or Path('work_dirs', f'{Path(args.config).stem}.onnx'))
    require_out(out)  # this and build_graph before minutes of work, and before the data
    if args.num_images < 1:
        raise UserError(f'--num-images {args.num_images} is not allowed: use at least 1')
    trained = load_trained(args.config, args.checkpoint, 'cpu', args.cfg_options)
    build_graph(trained, args.paste_masks, args.resize)
    images = None if args.no_report else open_images(trained, args.images)
    export_onnx(trained, out, args.paste_masks, args.resize)
    print(f'wrote {out}')
    if images is not None:
        print('comparing the graph with PyTorch', flush=True)
        report = compare(trained, OnnxModel(out), images, args.num_images)
        print(*report.lines(), sep='\n')
        if report.skipped:
            raise UserError(
                f'images that were skipped, see the lines above: {report.skipped}. Replace or '
                f'remove them; {out} is complete'
            )


if __name__ == '__main__':
    run_tool(main)
