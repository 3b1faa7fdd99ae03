"""Compare the speed and memory of backbones on the same random images, on a CPU or a GPU.

    python tools/benchmark_backbones.py
    python tools/benchmark_backbones.py --backbones gcvit swin --rounds 3 --json speed.json
    python tools/benchmark_backbones.py --shapes 512x512 2048x2048 --plot speed.png

Each backbone is measured in a separate process, one after the other, and --rounds repeats this. The
tables show medians over all rounds and ratios to the first backbone. GC ViT needs only torch and
mmengine. Backbones whose packages are not installed are skipped with a note.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from mmgcvit.analysis.backbone_speed import DTYPES, Measurement, Settings, measure_backbone
from mmgcvit.analysis.peers import BACKBONES
from mmgcvit.engine import prepare_child, run_tool
from mmgcvit.errors import UserError, counted
from mmgcvit.files import write_atomically
from mmgcvit.models import ARCHS
from mmgcvit.progress import duration, time_left
from mmgcvit.visualization.cost_per_pixel import plot_cost_per_pixel

Results = dict[tuple[tuple[int, int], str], list[Measurement]]


@dataclass(frozen=True)
class Plan:
    """Measurements and output files."""

    settings: Settings
    backbones: list[str]
    shapes: list[tuple[int, int]]
    rounds: int
    json: Path | None
    plot: Path | None


def main(argv: Sequence[str] | None = None) -> None:
    plan = parse(argv)
    results = measure_all(plan)
    print(headline(plan))
    for shape in plan.shapes:
        print()
        print(table(plan, shape, results))
    if plan.json:
        write_atomically(plan.json, json.dumps(as_json(plan, results), indent=2).encode())
    if plan.plot:
        plot(plan, results, plan.plot)


def parse(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--backbones',
        nargs='+',
        default=list(BACKBONES),
        metavar='NAME',
        help=f'{", ".join(BACKBONES)}, or timm:NAME (default: all except timm)',
    )
    parser.add_argument(
        '--arch',
        default='tiny',
        choices=list(ARCHS),
        help='size of the backbones (default: %(default)s)',
    )
    parser.add_argument(
        '--shapes',
        nargs='+',
        default=['800x1280'],
        metavar='HxW',
        help='heights and widths of the images (default: 800x1280)',
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images per step (default: %(default)s)'
    )
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='device (default: cuda if available, otherwise cpu)',
    )
    parser.add_argument(
        '--dtype',
        default='float32',
        choices=DTYPES,
        help='data type; all except float32 use mixed precision (default: %(default)s)',
    )
    parser.add_argument(
        '--compile', action='store_true', help='compile the backbones with torch.compile'
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=1,
        help='processes per backbone and image size (default: %(default)s)',
    )
    parser.add_argument(
        '--runs', type=int, default=3, help='measured steps per process (default: %(default)s)'
    )
    parser.add_argument(
        '--warm-up', type=int, default=1, help='warm-up steps per process (default: %(default)s)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all numbers to FILE')
    parser.add_argument(
        '--plot', type=Path, metavar='FILE.png', help='plot time per pixel against image size'
    )
    args = parser.parse_args(argv)
    for option, minimum in (('batch_size', 1), ('rounds', 1), ('runs', 1), ('warm_up', 0)):
        if getattr(args, option) < minimum:
            raise UserError(
                f'--{option.replace("_", "-")} {getattr(args, option)} is not allowed: use an '
                f'integer of at least {minimum}'
            )
    for name in args.backbones:
        if name not in BACKBONES and not name.startswith('timm:'):
            raise UserError(
                f'--backbones {name} is not known: choose from {", ".join(BACKBONES)}, or '
                'timm:NAME for a timm model'
            )
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch finds no GPU; use --device cpu')
    if args.plot and args.plot.suffix.lower() != '.png':
        raise UserError(f'--plot {args.plot} is not allowed: the file name must end in .png')
    files = [file and writable(file.expanduser()) for file in (args.json, args.plot)]
    settings = Settings(
        args.backbones[0],
        args.arch,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        warm_up=args.warm_up,
        runs=args.runs,
    )
    # each shape is measured once
    shapes = list(dict.fromkeys(to_shape(text) for text in args.shapes))
    return Plan(settings, list(dict.fromkeys(args.backbones)), shapes, args.rounds, *files)


def writable(file: Path) -> Path:
    """Return a file that can be written. Otherwise, fail before anything is measured."""
    if file.is_dir():
        raise UserError(f'{file} is a folder; specify a file')
    if not file.absolute().parent.is_dir():
        raise UserError(f'{file}: the folder {file.parent} does not exist; create it first')
    if not os.access(file.absolute().parent, os.W_OK):
        raise UserError(f'{file}: the folder {file.parent} is not writable; choose another one')
    return file


def to_shape(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f'--shapes {text} is not allowed: use HEIGHTxWIDTH, for example 800x1280')
    return int(height), int(width)


def measure_all(plan: Plan) -> Results:
    results: Results = {(shape, name): [] for shape in plan.shapes for name in plan.backbones}
    jobs = [(shape, name) for shape in plan.shapes for _ in range(plan.rounds)
            for name in plan.backbones]  # fmt: skip
    start, pixels_done = time.monotonic(), 0
    pixels = sum(height * width for (height, width), _ in jobs)
    for number, (shape, name) in enumerate(jobs, 1):
        left = ''
        if pixels_done:
            left = f', about {duration(time_left(start, pixels_done, pixels))} left'
        text = f'{number} of {len(jobs)}: {name}, {shape[0]}x{shape[1]}{left}'
        print(text, file=sys.stderr, flush=True)
        found = results[shape, name]
        # a backbone that failed is not tried again
        if not (found and found[-1].note):
            found.append(measure_alone(replace(plan.settings, name=name, shape=shape)))
        pixels_done += shape[0] * shape[1]
    return results


def measure_alone(settings: Settings) -> Measurement:
    """Measure in a new process, so that its peak memory belongs to this backbone only."""
    # mmdet's Swin imports mmcv's operators
    spawn = get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare_child) as pool:
        try:
            return pool.submit(measure_backbone, settings).result()
        except BrokenProcessPool:
            return Measurement(
                note='the process was killed, most likely because it ran out of memory'
            )


def device_name(plan: Plan) -> str:
    if plan.settings.device == 'cuda':
        return torch.cuda.get_device_name()
    return f'CPU, {counted(torch.get_num_threads(), "thread")}'


def headline(plan: Plan) -> str:
    settings = plan.settings
    parts = [
        f'batch {settings.batch_size}',
        settings.dtype + (', compiled' if settings.compile else ''),
        f'{device_name(plan)}, torch {torch.__version__}',
        f'medians of {plan.rounds} processes with {settings.runs} steps each',
    ]
    memory = 'GPU' if settings.device == 'cuda' else 'process'
    return (
        f'{"; ".join(parts)}\n'
        f'×: ratio to the first backbone; memory: peak {memory} memory minus the memory before '
        'building the model'
    )


def table(plan: Plan, shape: tuple[int, int], results: Results) -> str:
    width = max(10, *(len(name) for name in plan.backbones)) + 1
    lines = [
        f'{shape[0]}×{shape[1]}',
        f'{"":{width}}{"params":>8}{"GMAC":>8}{"forward":>11}{"×":>7}{"training":>11}{"×":>7}'
        f'{"memory":>11}{"×":>7}',
    ]
    first = results[shape, plan.backbones[0]]
    for name in plan.backbones:
        found = results[shape, name]
        if found[-1].note:
            lines.append(f'{name:{width}}skipped: {found[-1].note}')
            continue
        line = f'{name:{width}}{found[0].params / 1e6:6.1f} M{found[0].macs / 1e9:8.1f}'
        for value, unit, scale in (
            (forward, 'ms', 1e3),
            (training, 'ms', 1e3),
            (memory, 'GB', 1e-9),
        ):
            number = scale * value(found)
            ratio = '' if first[-1].note else f'{value(found) / value(first):.2f}'
            line += f'{number:8.{0 if unit == "ms" and number >= 100 else 2}f} {unit}{ratio:>7}'
        lines.append(line)
    return '\n'.join(lines)


def forward(found: Sequence[Measurement]) -> float:
    return median(seconds for one in found for seconds in one.forward)


def training(found: Sequence[Measurement]) -> float:
    return median(seconds for one in found for seconds in one.training)


def memory(found: Sequence[Measurement]) -> float:
    return median(one.training_memory for one in found)


def as_json(plan: Plan, results: Results) -> dict:
    return {
        'date': date.today().isoformat(),
        'device': device_name(plan),
        'machine': platform.machine(),
        'torch': torch.__version__,
        'rounds': plan.rounds,
        'settings': {
            key: value
            for key, value in asdict(plan.settings).items()
            if key not in ('name', 'shape')
        },
        'results': [
            {'backbone': name, 'shape': shape, 'rounds': [asdict(one) for one in found]}
            for (shape, name), found in results.items()
        ],
    }


def plot(plan: Plan, results: Results, path: Path) -> None:
    panels: dict = {}
    for title, value in (('forward', forward), ('training step', training)):
        panels[title] = {}
        for name in plan.backbones:
            line = {
                shape: value(results[shape, name]) / plan.settings.batch_size
                for shape in plan.shapes
                if not results[shape, name][-1].note
            }
            if line:
                panels[title][name] = line
    try:
        print(f'wrote {plot_cost_per_pixel(panels, path)}')
    except ValueError as error:
        raise UserError(f'--plot {path}: {error}') from error


if __name__ == '__main__':
    run_tool(main)
