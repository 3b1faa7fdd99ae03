"""Tables of the docs, generated from the models of metafile.yml and from data files.

Each table is a function that takes the models and returns Markdown.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models import ARCHS

Table = Callable[[Sequence[dict]], str]
FLOPS = {  # headings by key
    'FLOPs': 'FLOPs, all products',
    'FLOPs (linear and convolution, padded)': 'FLOPs, linear, padded',
    'FLOPs (all products, padded)': 'FLOPs, all, padded',
}
NAIVE, NAIVE_ALL = list(FLOPS)[1:]
SOURCES = ('paper', 'model card')  # of published numbers
# names of configs by method, and the archs of their sizes
METHODS = {
    'classifier': 'gcvit_{}',
    'mask-rcnn': 'mask-rcnn_gcvit-{}_fpn_3x_coco',
    'cascade-mask-rcnn': 'cascade-mask-rcnn_gcvit-{}_fpn_3x_coco',
    'upernet': 'upernet_gcvit-{}_160k_ade20k-512x512',
}
SIZES = dict(zip(('xxt', 'xt', 't', 't2', 's', 's2', 'b', 'l'), ARCHS, strict=True))


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


def sizes_of(method: str, models: Sequence[dict]) -> dict[str, dict]:
    """Return the networks of a method by arch."""
    by_name = {model['Name']: model for model in models}
    return {arch: by_name[METHODS[method].format(size)] for size, arch in SIZES.items()}


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


def size_overview(models: Sequence[dict]) -> str:
    """Return the table of accuracies and FLOPs of every size."""
    columns = {
        'classifier': 'Top 1 Accuracy (model card)',
        'cascade-mask-rcnn': 'box AP (paper)',
        'upernet': 'mIoU (paper)',
    }
    rows = []
    for arch in ARCHS:
        row = [f'`{arch}`']
        for method, metric in columns.items():
            model = sizes_of(method, models)[arch]
            row += [str(metrics_of(model).get(metric, '–')), giga(model['Metadata']['FLOPs'])]
        rows.append(row)
    header = [
        'size',
        'ImageNet-1K top-1 (model card)',
        'FLOPs',
        'Cascade Mask R-CNN box AP (paper)',
    ]
    return markdown([*header, 'FLOPs', 'UPerNet mIoU (paper)', 'FLOPs'], rows)


def zoo(folder: str, metrics: Sequence[str]) -> Table:
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
    """Return the relative difference of a count from a published number, rounded."""
    return round(count / float(number.split()[0]) - 1, 3) + 0.0  # never -0.0


def trainings(collections: Sequence[dict]) -> Table:
    """Return a function that generates the table of trainings whose resources are published."""
    inherited = {collection['Name']: collection['Metadata'] for collection in collections}

    def table(models: Sequence[dict]) -> str:
        names: dict[tuple[str, ...], list[str]] = {}
        for model in models:
            data = inherited[model['In Collection']] | model['Metadata']
            if 'Training Resources' in data:
                unit = 'Epochs' if 'Epochs' in data else 'Iterations'
                resources = data['Training Resources'].removesuffix(' (paper)')
                hours = f'{data["Paper Training Time (h)"]} h'
                row = (resources, str(data['Batch Size']), f'{data[unit]} {unit.lower()}', hours)
                names.setdefault(row, []).append(model['Name'])
        rows = [['<br>'.join(of), *row] for row, of in names.items()]
        header = ['networks', 'hardware', 'batch size', 'length', 'time, mean over the task']
        return markdown(header, rows)

    return table


def ablations(models: Sequence[dict]) -> str:
    """Return the table of the ablations; GC ViT-T is the last row."""
    columns = ['Top 1 Accuracy (paper)', 'box AP (paper)', 'mask AP (paper)', 'mIoU (paper)']
    complete = [
        sizes_of(method, models)['tiny']
        for method in ('classifier', 'cascade-mask-rcnn', 'upernet')
    ]
    results = {name: value for model in complete for name, value in metrics_of(model).items()}
    ablated = [(model, metrics_of(model)) for model in networks(models, 'ablations')]
    rows = []
    for model, metrics in [*ablated, (complete[0], results)]:
        data = model['Metadata']
        row = [data.get('Paper Row', 'GC ViT-T'), f'[{model["Name"]}](../{model["Config"]})']
        row += [f'{data["Parameters"] / 1e6:.1f} M', giga(data['FLOPs'])]
        rows.append([*row, *(str(metrics.get(column, '–')) for column in columns)])
    return markdown(['paper', 'config', 'params', 'FLOPs at 224×224', *columns], rows)


def comparison(data: Mapping[str, Any]) -> Table:
    """Return a function that generates a table of published results of GC ViT and others.

    Args:
        data: ``columns``, names of metrics, and ``rows``, which maps each source to networks: lists
            of cells, or a name in the metafile.
    """

    def table(models: Sequence[dict]) -> str:
        columns, by_name = data['columns'], {model['Name']: model for model in models}
        rows = []
        for source, networks in data['rows'].items():
            for network in networks:
                cells = ours(by_name[network], columns) if isinstance(network, str) else network
                missing = ['–'] * (3 + len(columns) - len(cells))
                rows.append([*map(str, cells), *missing, source])
        return markdown(['network', 'params (M)', 'FLOPs (G)', *columns, 'source'], rows)

    def ours(model: dict, columns: Sequence[str]) -> list[str]:
        metrics = metrics_of(model)
        numbers = [published(model, key) for key in ('Parameters (M)', 'FLOPs (G)')]
        numbers += [str(metrics[f'{column} (paper)']) for column in columns]
        return [f'**GC ViT** [{model["Name"]}](../{model["Config"]})', *numbers]

    return table


def measured(data: Mapping[str, Any]) -> Table:
    """Return a function that generates a table of measurements with how they were made.

    Args:
        data: ``columns``, ``rows`` and optional texts: ``device``, ``date``, ``software`` and
            ``settings``.
    """

    def table(_: Sequence[dict]) -> str:
        made = [data[key] for key in ('device', 'date', 'software', 'settings') if key in data]
        text = markdown(data['columns'], data['rows'])
        return f'{text}\n\n*{"; ".join(made)}*' if made else text

    return table


def replace_between(text: str, begin: str, end: str, content: str, path: str | Path) -> str:
    """Replace the text between two lines of a page.

    Raises:
        UserError: If one of the two lines is missing or occurs more than once.
    """
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f'{path} must contain the lines {begin!r} and {end!r} exactly once')
    pattern = f'{re.escape(begin)}.*{re.escape(end)}'
    return re.sub(pattern, lambda _: f'{begin}\n{content}\n{end}', text, flags=re.DOTALL)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
