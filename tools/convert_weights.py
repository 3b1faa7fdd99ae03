"""Convert a weights file of GC ViT to the layout of another release.

python tools/convert_weights.py gcvit_1k_tiny.pth.tar gcvit_tiny.safetensors --window 24

IN is a path, a URL, hf://OWNER/REPO/FILE or timm://MODEL, in the layout of NVIDIA, timm or mmgcvit:
a backbone, a classifier, a detector or a segmentor. The suffix of OUT determines its format.
No code in IN is executed, and OUT must not exist. See docs/weights.md for layouts and sources.
"""

import argparse
from collections.abc import Sequence

from mmgcvit.engine import run_tool
from mmgcvit.errors import printable
from mmgcvit.weights import convert_weights
from mmgcvit.weights.export import DTYPES
from mmgcvit.weights.layouts import LAYOUTS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN', help='path or URL of a weights file')
    parser.add_argument('out', metavar='OUT', help='output file (.safetensors, .pth or .pt)')
    parser.add_argument(
        '--to',
        choices=list(LAYOUTS)[::-1],
        default='mmgcvit',
        help='layout of OUT (default: %(default)s)',
    )
    parser.add_argument(
        '--window',
        dest='window_size',
        type=int,
        nargs='+',
        metavar='W',
        help='resize position biases to windows of W x W tokens: one W, or one per stage',
    )
    parser.add_argument(
        '--dtype', choices=list(DTYPES), help='dtype of the tensors (default: unchanged)'
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='write only the backbone, without necks and heads',
    )
    parser.add_argument(
        '--prefix',
        help="prefix of the backbone's parameter names, if IN contains several networks",
    )
    parser.add_argument(
        '--ema', action='store_true', help='use the EMA weights (exponential moving average)'
    )
    parser.add_argument('--sha256', help='expected SHA-256 of IN, 64 hexadecimal digits')
    args = vars(parser.parse_args(argv))
    conversion = convert_weights(args.pop('source'), args.pop('out'), **args)
    rows = [('tensors', 'number', 'parameters', 'result')]
    for group in conversion.groups:
        tensors, parameters = (f'{n:,}' if n else '' for n in (group.tensors, group.parameters))
        rows.append((group.name, tensors, parameters, group.became))
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    for name, tensors, parameters, became in rows:
        print(f'{printable(name):{first}}  {tensors:>{second}}  {parameters:>{third}}  {became}')
    print()
    for key, value in conversion.provenance.items():
        print(f'{key:14} {printable(value)}')
    print(f'wrote {conversion.out}')


if __name__ == '__main__':
    run_tool(main)
