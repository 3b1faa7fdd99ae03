"""Print the parameters and multiply-accumulates of a config's model.

python tools/get_flops.py configs/detection/mask-rcnn_gcvit-t_fpn_3x_coco.py
python tools/get_flops.py CONFIG --shape 512 512 --json flops.json

Supports models of mmdet, mmseg and mmpretrain with any backbone. For GC ViT, the published numbers
are also printed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmengine.fileio import load

from mmgcvit.analysis import Complexity, complexity_of, counted_shape
from mmgcvit.engine import config_parser, load_config, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.task import TASKS

METAFILE = Path(__file__).parents[1] / 'metafile.yml'


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__)
    shapes = ', '.join(f'{task.name} {"x".join(map(str, task.counted_shape))}' for task in TASKS)
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help=f'height and width of the image (default: {shapes}, or image_size)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the numbers to FILE')
    args = parser.parse_args(argv)
    cfg = load_config(args.config, options=args.cfg_options)
    default = counted_shape(cfg)
    height, width = shape = tuple(args.shape or default)
    if min(shape) < 1:
        raise UserError(
            f'--shape {height} {width} is not allowed: use a height and width of at least 1'
        )
    found = complexity_of(cfg, shape)
    counted = f', {found.counted}' if found.counted else ''
    print(f'{Path(args.config).stem}, one image of {height}×{width}{counted}')
    for name, value in rows(found, Path(args.config).stem, shape == default):
        print(f'{name:54}{value:>10}')
    if found.not_called:
        print(f'not called, so not counted: {", ".join(found.not_called)}')
    if args.json:
        numbers = {'config': args.config, 'shape': shape, **asdict(found)}
        write_atomically(args.json, json.dumps(numbers, indent=2).encode())


def rows(found: Complexity, name: str, same_shape: bool) -> list[tuple[str, str]]:
    """Return names and numbers. Padded windows and the paper's numbers are only for GC ViT."""
    always = [
        ('parameters', f'{found.params / 1e6:.2f} M'),
        ('multiply-accumulates, all products, as computed here', giga(found.macs)),
    ]
    if not found.has_windows:
        return always
    return [
        *always,
        ('  linear and convolution only, all windows padded', giga(found.naive_linear_macs)),
        ('  all products, all windows padded', giga(found.naive_macs)),
        ("the paper's", paper(name, same_shape)),
    ]


def giga(number: int) -> str:
    return f'{number / 1e9:.1f} G'


def paper(name: str, same_shape: bool) -> str:
    """Return the published parameters and FLOPs of a network from the metafile."""
    for model in load(METAFILE)['Models']:
        data = model['Metadata']
        if name in (model['Name'], *model.get('Alias', ())) and 'Paper FLOPs (G)' in data:
            text = f'{data["Paper Parameters (M)"]} M, {data["Paper FLOPs (G)"]} G'
            return text if same_shape else f'{text} (at a different image size)'
    return 'not published'


if __name__ == '__main__':
    run_tool(main)
