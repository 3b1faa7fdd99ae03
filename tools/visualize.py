"""Draw what a trained GC ViT does with an image: global queries, attention and Grad-CAM.

python tools/visualize.py IMAGE CONFIG CHECKPOINT
python tools/visualize.py IMAGE CONFIG CHECKPOINT --token 120 80 --stage 2
python tools/visualize.py IMAGE CONFIG CHECKPOINT --stage 0 --block 1 --head 0 --npz
python tools/visualize.py IMAGE CONFIG CHECKPOINT --cam circle

See docs/visualization.md for the meaning of the pictures and of the numbers.
"""

from collections.abc import Sequence
from pathlib import Path

from mmgcvit.engine import config_parser, run_tool
from mmgcvit.inference import load_trained
from mmgcvit.visualization import MapOptions, draw_maps


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__, [('image', 'path of an image')])
    parser.add_argument('checkpoint', help="path or URL of the complete model's checkpoint")
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='output folder (default: work_dirs/CONFIG_NAME/visualize/IMAGE_NAME)',
    )
    parser.add_argument(
        '--stage',
        type=int,
        metavar='N',
        help='only this stage, counted from 0 (default: all stages)',
    )
    parser.add_argument(
        '--block',
        type=int,
        metavar='N',
        help='block of --stage, counted from 0 (default: the last local and the last global one)',
    )
    parser.add_argument('--type', choices=['local', 'global'], help='only this type of attention')
    parser.add_argument(
        '--head',
        type=int,
        metavar='N',
        help='attention head, counted from 0 (default: mean of all heads)',
    )
    parser.add_argument(
        '--token',
        nargs=2,
        type=int,
        metavar=('X', 'Y'),
        help='draw the attention of the token at this pixel of the image (default: mean over the '
        'queries of each window)',
    )
    parser.add_argument(
        '--cam',
        metavar='CLASS',
        help='class that Grad-CAM explains; for detectors also the number of a detection, counted '
        'from 0 in the order of the scores (default: the best detection, the class with most '
        'pixels, or the most probable class)',
    )
    parser.add_argument('--no-cam', action='store_true', help='do not compute Grad-CAM')
    parser.add_argument(
        '--score-thr',
        type=float,
        metavar='SCORE',
        default=MapOptions.score_thr,
        help='minimum score of detections for --cam (default: %(default)s)',
    )
    parser.add_argument('--npz', action='store_true', help='also write the numbers to maps.npz')
    parser.add_argument('--device', help='cpu, cuda or cuda:N (default: the GPU if there is one)')
    args = parser.parse_args(argv)
    name = Path('work_dirs', Path(args.config).stem, 'visualize', Path(args.image).stem)
    folder = Path(args.out or name)
    options = MapOptions(
        stage=args.stage,
        block=args.block,
        kind=args.type,
        head=args.head,
        token=args.token and tuple(args.token),
        with_cam=not args.no_cam,
        cam=args.cam,
        score_thr=args.score_thr,
        numbers=args.npz,
    )
    trained = load_trained(args.config, args.checkpoint, args.device, args.cfg_options)
    existing = set(folder.iterdir()) if folder.is_dir() else ()
    for path in draw_maps(trained, args.image, folder, options):
        print(f'{path} (replaced)' if path in existing else path, flush=True)


if __name__ == '__main__':
    run_tool(main)
