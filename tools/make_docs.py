"""Write the tables in README.md and docs/ from metafile.yml and docs/data/.

python tools/make_docs.py            # after changing metafile.yml or docs/data/
python tools/make_docs.py --measure  # after changing a network: count all networks first
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.fileio import dump, load

from mmgcvit import GCViT
from mmgcvit.analysis import complexity_of, counted_shape
from mmgcvit.analysis.doc_tables import (
    NAIVE,
    NAIVE_ALL,
    SOURCES,
    Table,
    ablations,
    comparison,
    differences,
    markdown,
    measured,
    networks,
    replace_between,
    size_overview,
    sizes,
    trainings,
    zoo,
)
from mmgcvit.analysis.training_memory import memory_tables
from mmgcvit.engine import load_config, run_tool
from mmgcvit.files import write_atomically
from mmgcvit.models import ARCHS

ROOT = Path(__file__).parents[1]
METAFILE = ROOT / 'metafile.yml'
MEASURED = load(ROOT / 'docs/data/measured.yml')
PUBLISHED = load(ROOT / 'docs/data/published.yml')
# GB/s in one direction, according to the standards and vendors
LINKS = {
    'NVLink 3': 300,
    'PCIe 4 ×16': 31.5,
    'InfiniBand HDR': 25,
    '100 Gb/s Ethernet': 12.5,
    '25 Gb/s Ethernet': 3.125,
}
GPUS = 8


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
    """Replace the text between the markers of a table."""
    begin, end = f'<!-- {name}: made by tools/make_docs.py -->', f'<!-- end of {name} -->'
    return replace_between(text, begin, end, table, path)


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


CLASSIFIERS = zoo('classification', [f'Top 1 Accuracy ({source})' for source in SOURCES])
AP = ['box AP (paper)', 'mask AP (paper)']
PERFORMANCE = ['cpu', 'cpu-versions', 'recompute', 'image-sizes', 'gpu', 'gpu-profile']
PERFORMANCE += ['forward-parts', 'training-parts']
TABLES: dict[str, dict[str, Table]] = {
    'README.md': {'sizes': sizes},
    'docs/model_zoo.md': {
        'classification': CLASSIFIERS,
        'detection': zoo('detection', AP),
        'segmentation': zoo('segmentation', ['mIoU (paper)']),
        'differences': differences,
        'trainings': trainings(load(METAFILE)['Collections']),
        **{name: comparison(data) for name, data in PUBLISHED.items()},
    },
    'docs/classification.md': {'classification': CLASSIFIERS},
    'docs/performance.md': {name: measured(MEASURED[name]) for name in PERFORMANCE},
    'docs/training.md': {
        'saving-memory': measured(MEASURED['saving-memory']),
        'decay-rates': decay_rates,
    },
    'docs/graph_modes.md': {'graph-padding': measured(MEASURED['graph-padding'])},
    'docs/scaling.md': {'traffic': traffic},
    'docs/choosing.md': {
        'size-overview': size_overview,
        **memory_tables(MEASURED),
        'memory-backbones': measured(MEASURED['memory-backbones']),
        'memory-networks': measured(MEASURED['memory-networks']),
    },
    'docs/ablations.md': {'ablations': ablations},
}

if __name__ == '__main__':
    run_tool(main)
