"""Print a config's parameters and multiply-accumulates beside those that the paper tells.

python tools/get_flops.py configs/detection/mask_rcnn_gcvit_t.py
python tools/get_flops.py configs/segmentation/upernet_gcvit_t.py --shape 512 512 --json flops.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmengine.fileio import load

from mmgcvit.analysis import build_on_meta, count_complexity
from mmgcvit.analysis.complexity import NUM_MASKS, NUM_PROPOSALS
from mmgcvit.engine import config_parser, load_config, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.task import require_task

METAFILE = Path(__file__).parents[1] / 'metafile.yml'


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__.splitlines()[0])
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='of the image; 800 1280 for detectors, 512 2048 for segmentors',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the numbers there too')
    args = parser.parse_args(argv)
    cfg = load_config(args.config, options=args.cfg_options)
    task = require_task(cfg)
    height, width = shape = tuple(args.shape or task.counted_shape)
    if min(shape) < 1:
        raise UserError(f'--shape {height} {width} is not allowed: give two sides of at least 1')
    found = count_complexity(build_on_meta(cfg), shape)
    fixed = f', {NUM_PROPOSALS} proposals, {NUM_MASKS} masks' if 'roi_head' in cfg.model else ''
    print(f'{Path(args.config).stem}, one image of {width}×{height}{fixed}')
    rows = [
        ('parameters', f'{found.params / 1e6:.2f} M'),
        ('multiply-accumulates, all products, as computed here', giga(found.macs)),
        ('  linear and convolution only, windows padded whole', giga(found.naive_linear_macs)),
        ('  all products, windows padded whole', giga(found.naive_macs)),
        ("the paper's", paper(Path(args.config).stem, shape == task.counted_shape)),
    ]
    for name, value in rows:
        print(f'{name:54}{value:>10}')
    if args.json:
        numbers = {'config': args.config, 'shape': shape, **asdict(found)}
        write_atomically(args.json, json.dumps(numbers, indent=2).encode())


def giga(number: int) -> str:
    return f'{number / 1e9:.1f} G'


def paper(name: str, same_shape: bool) -> str:
    """Return the published parameters and FLOPs of a network, as the metafile has them."""
    for model in load(METAFILE)['Models']:
        data = model['Metadata']
        if name in (model['Name'], *model.get('Alias', ())) and 'Paper FLOPs (G)' in data:
            text = f'{data["Paper Parameters (M)"]} M, {data["Paper FLOPs (G)"]} G'
            return text if same_shape else f'{text}, at another size'
    return 'not published'


if __name__ == '__main__':
    run_tool(main)
