"""Measure the speed and memory of inference and training of a config's model on this machine.

python tools/benchmark.py configs/detection/mask-rcnn_gcvit-t_fpn_3x_coco.py
python tools/benchmark.py CONFIG CHECKPOINT --dtype bfloat16 --compile --json speed.json

Images are random. Without a checkpoint, a detector detects almost nothing, so inference takes less
time than with a checkpoint.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from mmgcvit.analysis.speed import INFERENCE, PERCENTILES, TRAINING, Settings, Speed, measure
from mmgcvit.engine import config_parser, prepare_child, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.mmcv_ops import require_operators
from mmgcvit.task import TASKS


def main(argv: Sequence[str] | None = None) -> None:
    settings, json_file = parse(argv)
    print(f"mmcv's operators: {require_operators()}", flush=True)
    speeds = [measure_alone(settings, phase) for phase in (INFERENCE, TRAINING)]
    print(table(settings, speeds))
    if json_file:
        numbers = {
            **asdict(settings),
            'torch': torch.__version__,
            'phases': [asdict(speed) for speed in speeds],
        }
        write_atomically(json_file, json.dumps(numbers, indent=2).encode())


def parse(argv: Sequence[str] | None) -> tuple[Settings, Path | None]:
    parser = config_parser(__doc__)
    parser.add_argument(
        'checkpoint', nargs='?', help='weights of the complete model (default: random weights)'
    )
    shapes = ', '.join(f'{task.name} {"x".join(map(str, task.timed_shape))}' for task in TASKS)
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help=f'height and width of the images (default: {shapes})',
    )
    parser.add_argument(
        '--batch-size', type=int, default=2, help='images per step (default: %(default)s)'
    )
    parser.add_argument(
        '--runs', type=int, default=20, help='measured steps (default: %(default)s)'
    )
    parser.add_argument(
        '--warm-up', type=int, default=3, help='warm-up steps (default: %(default)s)'
    )
    parser.add_argument(
        '--dtype',
        default='float32',
        choices=['float32', 'bfloat16', 'float16'],
        help='data type; all except float32 use mixed precision (default: %(default)s)',
    )
    parser.add_argument(
        '--compile', action='store_true', help='compile the backbone with torch.compile'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the numbers to FILE')
    args = vars(parser.parse_args(argv))
    for option, minimum in (('batch_size', 1), ('runs', 1), ('warm_up', 0)):
        if args[option] < minimum:
            raise UserError(
                f'--{option.replace("_", "-")} {args[option]} is not allowed: use an integer of '
                f'at least {minimum}'
            )
    if args['shape'] and min(args['shape']) < 1:
        raise UserError(
            f'--shape {args["shape"]} is not allowed: use a height and width of at least 1'
        )
    json_file = args.pop('json')
    return Settings(**args), json_file


def measure_alone(settings: Settings, phase: str) -> Speed:
    """Measure in a new process, so that its peak memory belongs to this phase only."""
    print(f'measuring: {phase}', file=sys.stderr, flush=True)
    spawn = get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare_child) as pool:
        try:
            return pool.submit(measure, settings, phase).result()
        except BrokenProcessPool as error:
            raise UserError(
                f'{phase}: the process was killed, most likely because it ran out of memory: use '
                'a smaller --batch-size or --shape'
            ) from error


def table(settings: Settings, speeds: Sequence[Speed]) -> str:
    height, width = speeds[0].shape
    parts = [
        f'{settings.batch_size} images of {height}×{width} per step',
        settings.dtype + (', compiled' if settings.compile else ''),
        f'{settings.runs} steps (warm-up: {settings.warm_up})',
        speeds[0].device,
    ]
    latencies = ''.join(f'{f"p{p} ms":>10}' for p in PERCENTILES)
    lines = ['; '.join(parts), f'{"":15}{"images/s":>10}{latencies}{"peak memory":>14}']
    for speed in speeds:
        values = [speed.images_per_second, *speed.latency_ms.values()]
        numbers = f'{values[0]:10.2f}' + ''.join(f'{value:10.1f}' for value in values[1:])
        lines.append(f'{speed.phase:15}{numbers}{speed.peak_memory / 1e9:11.2f} GB')
    before = speeds[0].memory_before
    lines.append(
        f'memory: the process, including {before / 1e9:.2f} GB before the model was built'
        if before
        else 'memory: tensors on the GPU'
    )
    return '\n'.join(lines)


if __name__ == '__main__':
    run_tool(main)
