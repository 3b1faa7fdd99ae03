"""Write the tables in README.md and docs/ from metafile.yml and docs/data/.

python tools/make_docs.py            # after changing metafile.yml or docs/data/
python tools/make_docs.py --measure  # after changing a network: count all networks first
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.fileio import dump, load

from mmgcvit import GCViT
from mmgcvit.analysis import complexity_of, counted_shape
from mmgcvit.engine import load_config, run_tool
from mmgcvit.errors import UserError
from mmgcvit.files import write_atomically
from mmgcvit.models import ARCHS

ROOT = Path(__file__).parents[1]
METAFILE = ROOT / 'metafile.yml'
MEASURED = load(ROOT / 'docs/data/measured.yml')
PUBLISHED = load(ROOT / 'docs/data/published.yml')
FLOPS = {  # headings by key
    'FLOPs': 'FLOPs, all products',
    'FLOPs (linear and convolution, padded)': 'FLOPs, linear, padded',
    'FLOPs (all products, padded)': 'FLOPs, all, padded',
}
NAIVE, NAIVE_ALL = list(FLOPS)[1:]
# GB/s in one direction, according to the standards and vendors
LINKS = {
    'NVLink 3': 300,
    'PCIe 4 ×16': 31.5,
    'InfiniBand HDR': 25,
    '100 Gb/s Ethernet': 12.5,
    '25 Gb/s Ethernet': 3.125,
}
GPUS = 8
SOURCES = ('paper', 'model card')  # of published numbers
TASKS = ('classification', 'detection', 'segmentation')


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
    for model in metafile['Models']:
        cfg = load_config(ROOT / model['Config'])
        complexity = complexity_of(cfg, counted_shape(cfg))
        counts = {
            'Parameters': complexity.params,
            'FLOPs': complexity.macs,
            NAIVE: complexity.naive_linear_macs,
            NAIVE_ALL: complexity.naive_macs,
        }
        if 'Backbone Parameters' in model['Metadata']:
            counts['Backbone Parameters'] = backbone_parameters(model['Metadata']['Backbone'])
        model['Metadata'] |= counts
        print(model['Name'], *counts.values())
    text = dump(metafile, file_format='yml', sort_keys=False, allow_unicode=True, width=120)
    write_atomically(METAFILE, text.encode())


def backbone_parameters(arch: str) -> int:
    """Return the parameters of a backbone with its four output norms, as it is pretrained."""
    with torch.device('meta'):
        model = GCViT(arch, window_size=(7, 7, 14, 7))
    return sum(p.numel() for p in model.parameters())


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


def networks(models: Sequence[dict], folder: str = '') -> list[dict]:
    """Return the models whose config is in a folder of configs/."""
    return [model for model in models if model['Config'].startswith(f'configs/{folder}')]


def metrics_of(model: dict) -> dict[str, float]:
    """Return the published metrics of all tasks of a model."""
    results = model.get('Results', [])
    return {name: value for result in results for name, value in result['Metrics'].items()}


def published(model: dict, key: str) -> str:
    """Return a published number, such as 'FLOPs (G)', with its source unless it is the paper."""
    data = model['Metadata']
    if f'Paper {key}' in data:
        return str(data[f'Paper {key}'])
    return f'{data[f"Model Card {key}"]} (model card)' if f'Model Card {key}' in data else '–'


def weights(model: dict) -> str:
    """Return a link to the weights of a model with their license."""
    if 'Weights' not in model:
        return '–'
    return f'[file]({model["Weights"]}), {model["Metadata"]["Weights License"]}'


def giga(number: int) -> str:
    return f'{number / 1e9:.{0 if number > 1e11 else 2}f} G'


def sizes(models: Sequence[dict]) -> str:
    """Return the table of the backbone's sizes."""
    rows = []
    for model in networks(models, 'classification'):
        data, metrics = model['Metadata'], metrics_of(model)
        if 'Backbone Parameters' not in data:
            continue
        arch = ARCHS[data['Backbone']]
        channels, depths = (' '.join(map(str, v)) for v in (arch.dims, arch.depths))
        top1 = [str(metrics.get(f'Top 1 Accuracy ({source})', '–')) for source in SOURCES]
        params = f'{data["Backbone Parameters"] / 1e6:.1f} M'
        row = [f'`{data["Backbone"]}`', channels, depths, params, giga(data['FLOPs']), *top1]
        rows.append([*row, f'[file]({model["Weights"]})'])
    header = ['`arch`', 'channels', 'depths', 'backbone parameters', 'FLOPs at 224×224']
    header += [f'ImageNet-1K top-1 ({source})' for source in SOURCES]
    return markdown([*header, 'NVIDIA weights'], rows)


def zoo(folder: str, metrics: Sequence[str]) -> Callable[[Sequence[dict]], str]:
    """Return a function that generates the table of the networks in a folder of configs."""

    def table(models: Sequence[dict]) -> str:
        rows = []
        for model in networks(models, folder):
            data, results = model['Metadata'], metrics_of(model)
            row = [
                f'[{model["Name"]}](../{model["Config"]})',
                f'{data["Parameters"] / 1e6:.1f} M',
                *(giga(data[key]) for key in FLOPS),
                *(str(results.get(metric, '–')) for metric in metrics),
            ]
            rows.append(row + [weights(model)] * with_weights + ['no'])
        header = ['config', 'params', *FLOPS.values(), *metrics]
        return markdown(header + ['NVIDIA weights'] * with_weights + ['trained by us'], rows)

    with_weights = folder == 'classification'
    return table


def differences(models: Sequence[dict]) -> str:
    """Return the table of our counts and the published ones, with the nearest kind of FLOPs."""
    rows = []
    for model in models:
        data = model['Metadata']
        params, flops = (published(model, key) for key in ('Parameters (M)', 'FLOPs (G)'))
        if flops == '–':
            continue
        nearest = min(NAIVE, NAIVE_ALL, key=lambda key: abs(difference(data[key] / 1e9, flops)))
        row = [model['Name'], f'{data["Parameters"] / 1e6:.1f} M', params]
        row.append('–' if params == '–' else f'{difference(data["Parameters"] / 1e6, params):+.1%}')
        row += [giga(data[nearest]), flops, f'{difference(data[nearest] / 1e9, flops):+.1%}']
        rows.append([*row, FLOPS[nearest].removeprefix('FLOPs, ')])
    header = ['network', 'params', 'params (paper), M', 'difference']
    header += ['FLOPs, nearest count', 'FLOPs (paper), G', 'difference', 'nearest count']
    return markdown(header, rows)


def difference(count: float, number: str) -> float:
    """Return the relative difference of a count from a published number."""
    return count / float(number.split()[0]) - 1


def trainings(models: Sequence[dict]) -> str:
    """Return the table of the trainings whose resources are published."""
    rows = []
    collections = {collection['Name']: collection for collection in load(METAFILE)['Collections']}
    for folder in TASKS:
        for model in networks(models, folder):
            data = collections[model['In Collection']]['Metadata'] | model['Metadata']
            if 'Training Resources' in data:
                unit = 'Epochs' if 'Epochs' in data else 'Iterations'
                row = [model['Name'], data['Training Resources'], str(data['Batch Size'])]
                row += [f'{data[unit]} {unit.lower()}', f'{data["Paper Training Time (h)"]} h']
                rows.append(row)
    header = ['network', 'hardware', 'batch size', 'length', 'time, mean over the task (paper)']
    return markdown(header, rows)


def comparison(name: str) -> Callable[[Sequence[dict]], str]:
    """Return a function that generates a table of published results of GC ViT and others."""

    def table(models: Sequence[dict]) -> str:
        columns, by_name = PUBLISHED[name]['columns'], {model['Name']: model for model in models}
        rows = []
        for source, networks in PUBLISHED[name]['rows'].items():
            for network in networks:
                cells = ours(by_name[network], columns) if isinstance(network, str) else network
                missing = ['–'] * (3 + len(columns) - len(cells))
                rows.append([*map(str, cells), *missing, source])
        return markdown(['network', 'params (M)', 'FLOPs (G)', *columns, 'source'], rows)

    def ours(model: dict, columns: Sequence[str]) -> list[str]:
        metrics = metrics_of(model)
        numbers = [published(model, key) for key in ('Parameters (M)', 'FLOPs (G)')]
        numbers += [metrics[f'{column} (paper)'] for column in columns]
        return [f'**GC ViT** [{model["Name"]}](../{model["Config"]})', *numbers]

    return table


def measured(name: str) -> Callable[[Sequence[dict]], str]:
    """Return a function that generates a table of measurements with how they were made."""

    def table(_: Sequence[dict]) -> str:
        data = MEASURED[name]
        made = [data[key] for key in ('device', 'date', 'software', 'settings') if key in data]
        text = markdown(data['columns'], data['rows'])
        return f'{text}\n\n*{"; ".join(made)}*' if made else text

    return table


def traffic(models: Sequence[dict]) -> str:
    """Return the table of the gradients that each of 8 GPUs sends per iteration, with times."""
    rows = []
    for model in networks(models, 'detection') + networks(models, 'segmentation'):
        data = gradient_traffic(model['Metadata']['Parameters'], GPUS)
        times = [f'{1e3 * data / (bandwidth * 1e9):.0f} ms' for bandwidth in LINKS.values()]
        rows.append([model['Name'], f'{data / 1e6:.0f} MB', *times])
    links = [f'{name} ({bandwidth:g} GB/s)' for name, bandwidth in LINKS.items()]
    return markdown(['network', 'sent by a GPU', *links], rows)


def gradient_traffic(params: int, gpus: int) -> float:
    """Return the bytes that a GPU sends in a ring all-reduce of float32 gradients."""
    return 2 * (gpus - 1) / gpus * 4 * params


def decay_rates(_: Sequence[dict]) -> str:
    """Return the table of the stem's learning rate with layer-wise decay."""
    blocks = sum(ARCHS['tiny'].depths)
    rows = [[str(rate), f'{rate ** (blocks + 1):.2g}'] for rate in (0.8, 0.9, 0.91, 0.92)]
    return markdown(['rate', f'stem, relative to neck and heads, with {blocks} blocks'], rows)


def ablations(models: Sequence[dict]) -> str:
    """Return the table of the ablations, with GC ViT-T as the last row."""
    by_name = {model['Name']: model for model in models}
    full = by_name['gcvit_t']
    # the paper's detector and segmentor
    results = [
        metrics_of(by_name[name]) for name in ('gcvit_t', ABLATED_DETECTOR, ABLATED_SEGMENTOR)
    ]
    rows = [(model, metrics_of(model)) for model in networks(models, 'ablations')]
    rows.append((full, results[0] | results[1] | results[2]))
    columns = ['Top 1 Accuracy (paper)', *AP, 'mIoU (paper)']
    return markdown(
        ['paper', 'config', 'params', 'FLOPs at 224×224', *columns],
        [
            [
                model['Metadata'].get('Paper Row', 'GC ViT-T'),
                f'[{model["Name"]}](../{model["Config"]})',
                f'{model["Metadata"]["Parameters"] / 1e6:.1f} M',
                giga(model['Metadata']['FLOPs']),
                *(str(metrics.get(column, '–')) for column in columns),
            ]
            for model, metrics in rows
        ],
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


AP = ['box AP (paper)', 'mask AP (paper)']
ABLATED_DETECTOR = 'cascade-mask-rcnn_gcvit-t_fpn_3x_coco'
ABLATED_SEGMENTOR = 'upernet_gcvit-t_160k_ade20k-512x512'
PERFORMANCE = ['cpu', 'cpu-versions', 'recompute', 'image-sizes', 'gpu', 'gpu-profile']
PERFORMANCE += ['forward-parts', 'training-parts']
TABLES = {
    'README.md': {'sizes': sizes},
    'docs/model_zoo.md': {
        'classification': zoo('classification', [f'Top 1 Accuracy ({s})' for s in SOURCES]),
        'detection': zoo('detection', AP),
        'segmentation': zoo('segmentation', ['mIoU (paper)']),
        'differences': differences,
        'trainings': trainings,
        **{name: comparison(name) for name in PUBLISHED},
    },
    'docs/performance.md': {name: measured(name) for name in PERFORMANCE},
    'docs/training.md': {
        'saving-memory': measured('saving-memory'),
        'decay-rates': decay_rates,
    },
    'docs/graph_modes.md': {'graph-padding': measured('graph-padding')},
    'docs/scaling.md': {'traffic': traffic},
    'docs/ablations.md': {'ablations': ablations},
}

if __name__ == '__main__':
    run_tool(main)
