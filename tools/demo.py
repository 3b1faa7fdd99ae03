"""Draw the predictions of a model on an image, a video, or all files of a folder.

    python tools/demo.py IMAGE|FOLDER|VIDEO CONFIG CHECKPOINT [--out DIR] [--score-thr 0.3]
        [--tiles [SIZE]]

Detectors, segmentors and classifiers: the drawn images (PNG) or videos (MP4), and the predictions
as JSON, with masks as COCO's RLE and label maps as PNG. Files that cannot be read are reported and
skipped; the exit code is then 1.
"""

from mmgcvit.engine import config_parser, run_tool
from mmgcvit.evaluation import add_tile_options, tile_options
from mmgcvit.inference import run_demo


def main() -> None:
    parser = config_parser(__doc__, [('input', 'image, video or folder, with its subfolders')])
    parser.add_argument('checkpoint', help='path or URL of a checkpoint')
    parser.add_argument(
        '--out', metavar='DIR', help='output folder (default: work_dirs/CONFIG_NAME/demo)'
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        help='detectors: draw only instances with a higher score (default: 0.3)',
    )
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: the GPU if there is one)')
    add_tile_options(parser)
    args = parser.parse_args()
    run_demo(
        args.input,
        args.config,
        args.checkpoint,
        out=args.out,
        score_thr=args.score_thr,
        device=args.device,
        options=args.cfg_options,
        tiles=tile_options(args),
    )


if __name__ == '__main__':
    run_tool(main)
