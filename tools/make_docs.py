"""Write the tables in README.md and docs/ from metafile.yml.

python tools/make_docs.py            # after changing metafile.yml
python tools/make_docs.py --measure  # after changing a network: count all networks first
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.fileio import dump, load

from mmgcvit.analysis import build_on_meta, count_complexity
from mmgcvit.engine import load_config, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.models import ARCHS
from mmgcvit.task import require_task

ROOT = Path(__file__).parents[1]
METAFILE = ROOT / 'metafile.yml'
FLOPS = ('FLOPs, all products', 'FLOPs, linear, padded', 'FLOPs, all, padded')  # headings
NAIVE, NAIVE_ALL = 'FLOPs (linear and convolution, padded)', 'FLOPs (all products, padded)'
# GB/s in one direction, according to the standards and vendors
LINKS = {
    'NVLink 3': 300,
    'PCIe 4 ×16': 31.5,
    'InfiniBand HDR': 25,
    '100 Gb/s Ethernet': 12.5,
    '25 Gb/s Ethernet': 3.125,
}
GPUS = 8
SOURCES = ('paper', 'model card')  # of ImageNet-1K top-1 accuracies


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--measure',
        action='store_true',
        help='first count parameters and FLOPs of every config and update metafile.yml',
    )
    args = parser.parse_args(argv)
    if args.measure:
        measure()
    models = load(METAFILE)['Models']
    for path in TABLES:
        write_atomically(ROOT / path, with_tables(path, models).encode())
        print(path)


def with_tables(path: str, models: Sequence[dict]) -> str:
    """Return the text of a page with its tables generated from the models of the metafile."""
    text = (ROOT / path).read_text(encoding='utf-8')
    for name, table in TABLES[path].items():
        text = replace_table(text, name, table(models), path)
    return text


def measure() -> None:
    """Count parameters and FLOPs of the metafile's networks and write them into it."""
    metafile = load(METAFILE)
    for model in networks(metafile['Models']):
        cfg = load_config(ROOT / model['Config'])
        complexity = count_complexity(build_on_meta(cfg), require_task(cfg).counted_shape)
        counts = {
            'Parameters': complexity.params,
            'FLOPs': complexity.macs,
            NAIVE: complexity.naive_linear_macs,
            NAIVE_ALL: complexity.naive_macs,
        }
        model['Metadata'] |= counts
        print(model['Name'], *counts.values())
    text = dump(metafile, file_format='yml', sort_keys=False, allow_unicode=True, width=120)
    write_atomically(METAFILE, text.encode())


def replace_table(text: str, name: str, table: str, path: str) -> str:
    """Replace the text between the markers of a table.

    Raises:
        UserError: If one of the two markers is missing or occurs more than once.
    """
    begin, end = f'<!-- {name}: made by tools/make_docs.py -->', f'<!-- end of {name} -->'
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f'{path} must contain the lines {begin!r} and {end!r} exactly once')
    pattern = f'{re.escape(begin)}.*{re.escape(end)}'
    return re.sub(pattern, lambda _: f'{begin}\n{table}\n{end}', text, flags=re.DOTALL)


def sizes(models: Sequence[dict]) -> str:
    """Return the table of the backbone's sizes, with links to their weights."""
    rows = []
    for model in models:
        if 'Config' in model:
            continue
        name = model['Name'].removeprefix('gcvit_')
        metrics = model['Results'][0]['Metrics']
        arch, params = ARCHS[name], model['Metadata']['Parameters']
        channels, depths = (' '.join(map(str, v)) for v in (arch.dims, arch.depths))
        top1 = [str(metrics.get(f'{source} Top 1 Accuracy', '–')) for source in SOURCES]
        row = [f'`{name}`', channels, depths, f'{params / 1e6:.1f} M', *top1]
        rows.append([*row, f'[file]({model["Weights"]})'])
    header = ['`arch`', 'channels', 'depths', 'backbone parameters']
    header += [f'ImageNet-1K top-1 ({source})' for source in SOURCES]
    return markdown([*header, 'NVIDIA weights'], rows)


def networks(models: Sequence[dict], folder: str = 'configs') -> list[dict]:
    return [model for model in models if model.get('Config', '').startswith(folder)]


def zoo(folder: str, metrics: Sequence[str]) -> Callable[[Sequence[dict]], str]:
    """Return a function that generates the table of the networks in a folder of configs."""

    def table(models: Sequence[dict]) -> str:
        rows = []
        for model in networks(models, folder):
            data, config = model['Metadata'], model['Config']
            results = model['Results'][0]['Metrics'] if 'Results' in model else {}
            row = [
                f'[{model["Name"]}](../{config})',
                f'{data["Parameters"] / 1e6:.1f} M',
                f'{data["Paper Parameters (M)"]} M' if 'Paper Parameters (M)' in data else '–',
                *(f'{data[key] / 1e9:.0f} G' for key in ('FLOPs', NAIVE, NAIVE_ALL)),
                f'{data["Paper FLOPs (G)"]} G' if 'Paper FLOPs (G)' in data else '–',
                *(str(results.get(f'paper {metric}', '–')) for metric in metrics),
                'no',
            ]
            rows.append(row)
        header = ['config', 'params', 'params (paper)', *FLOPS, 'FLOPs (paper)']
        header += [*(f'{metric} (paper)' for metric in metrics), 'trained by us']
        return markdown(header, rows)

    return table


def traffic(models: Sequence[dict]) -> str:
    """Return the table of the gradients that each of 8 GPUs sends per iteration, with times."""
    rows = []
    for model in networks(models):
        data = gradient_traffic(model['Metadata']['Parameters'], GPUS)
        times = [f'{1e3 * data / (bandwidth * 1e9):.0f} ms' for bandwidth in LINKS.values()]
        rows.append([model['Name'], f'{data / 1e6:.0f} MB', *times])
    links = [f'{name} ({bandwidth:g} GB/s)' for name, bandwidth in LINKS.items()]
    return markdown(['network', 'sent by a GPU', *links], rows)


def gradient_traffic(params: int, gpus: int) -> float:
    """Return the bytes that a GPU sends in a ring all-reduce of float32 gradients."""
    return 2 * (gpus - 1) / gpus * 4 * params


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


TABLES = {
    'README.md': {'sizes': sizes},
    'docs/model_zoo.md': {
        'detection': zoo('configs/detection', ['box AP', 'mask AP']),
        'segmentation': zoo('configs/segmentation', ['mIoU']),
    },
    'docs/scaling.md': {'traffic': traffic},
}

if __name__ == '__main__':
    run_tool(main)
