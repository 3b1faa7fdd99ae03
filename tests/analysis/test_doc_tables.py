"""Tables of the docs: each cell, from models that are written here."""

import pytest

from mmgcvit.analysis import doc_tables

FLOPS = ('FLOPs', 'FLOPs (linear and convolution, padded)', 'FLOPs (all products, padded)')


def model(name, folder, results=None, flops=(0, 0, 0), **metadata):
    metadata |= dict(zip(FLOPS, flops, strict=True))
    return {
        'Name': name,
        'In Collection': folder,
        'Config': f'configs/{folder}/{name}.py',
        'Metadata': metadata,
        'Results': [{'Task': 'any', 'Dataset': 'any', 'Metrics': results or {}}],
    }


MODELS = [
    model(
        'gcvit_t',
        'classification',
        {'Top 1 Accuracy (paper)': 83.4, 'Top 1 Accuracy (model card)': 83.5},
        (4.5e9, 4e9, 5e9),
        **{
            'Backbone': 'tiny',
            'Parameters': 28_200_000,
            'Backbone Parameters': 27_700_000,
            'Training Resources': '32x A100 GPUs (paper)',
            'Paper Training Time (h)': 32,
            'Paper Parameters (M)': 28,
            'Paper FLOPs (G)': 4.9,
            'Weights License': 'CC BY-NC-SA 4.0',
        },
    )
    | {'Weights': 'https://example.org/tiny'},
    model(
        'gcvit_t2',
        'classification',
        {'Top 1 Accuracy (model card)': 83.7},
        (6e9, 5.5e9, 6.2e9),
        **{'Parameters': 34_500_000, 'Model Card FLOPs (G)': 5.5},
    ),
    model(
        'det_t',
        'detection',
        {'box AP (paper)': 51.6, 'mask AP (paper)': 44.6},
        (780e9, 750e9, 830e9),
        **{'Parameters': 86_100_000, 'Paper Parameters (M)': 85, 'Paper FLOPs (G)': 770},
    ),
]


def rows(table):
    header, line, *lines = table.splitlines()
    assert set(line) == set('| -')
    cells = [row.strip('| ').split(' | ') for row in [header, *lines]]
    assert len({len(row) for row in cells}) == 1
    return cells[1:]


def test_sizes():
    (row,) = rows(doc_tables.sizes(MODELS))
    assert row == [
        *('`tiny`', '64 128 256 512', '3 4 19 5', '27.7 M', '4.50 G', '83.4', '83.5'),
        '[file](https://example.org/tiny)',
    ]


def test_zoo_states_weights_with_license_and_that_nothing_was_trained():
    metrics = ['Top 1 Accuracy (paper)', 'Top 1 Accuracy (model card)']
    with_weights, without = rows(doc_tables.zoo('classification', metrics)(MODELS))
    assert with_weights == [
        *('[gcvit_t](../configs/classification/gcvit_t.py)', '28.2 M'),
        *('4.50 G', '4.00 G', '5.00 G', '83.4', '83.5'),
        *('[file](https://example.org/tiny), CC BY-NC-SA 4.0', 'no'),
    ]
    assert without[5:] == ['–', '83.7', '–', 'no']
    (detector,) = rows(doc_tables.zoo('detection', ['box AP (paper)', 'mask AP (paper)'])(MODELS))
    assert detector[2:] == ['780 G', '750 G', '830 G', '51.6', '44.6', 'no']


def test_differences_are_from_the_nearer_count_with_padding():
    assert rows(doc_tables.differences(MODELS)) == [
        ['gcvit_t', '28.2 M', '28', '+0.7%', '5.00 G', '4.9', '+2.0%', 'all, padded'],
        [
            *('gcvit_t2', '34.5 M', '–', '–'),
            *('5.50 G', '5.5 (model card)', '+0.0%', 'linear, padded'),
        ],
        ['det_t', '86.1 M', '85', '+1.3%', '750 G', '770', '-2.6%', 'linear, padded'],
    ]


def test_published_trainings_are_grouped():
    collections = [
        {'Name': 'classification', 'Metadata': {'Epochs': 300, 'Batch Size': 4096}},
        {'Name': 'detection', 'Metadata': {'Iterations': 90000, 'Batch Size': 16}},
    ]
    ema = MODELS[0] | {'Name': 'gcvit_t_ema'}
    resources = {'Training Resources': '8x A40 GPUs (paper)', 'Paper Training Time (h)': 56}
    detector = MODELS[2] | {'Metadata': MODELS[2]['Metadata'] | resources}
    table = doc_tables.trainings(collections)([MODELS[0], ema, MODELS[1], detector])
    assert rows(table) == [
        ['gcvit_t<br>gcvit_t_ema', '32x A100 GPUs', '4096', '300 epochs', '32 h'],
        ['det_t', '8x A40 GPUs', '16', '90000 iterations', '56 h'],
    ]


def test_comparison_takes_our_row_from_the_metafile():
    data = {
        'columns': ['box AP', 'mask AP'],
        'rows': {'table 2': [['Swin-T', 86, 745, 50.4, 43.7], 'det_t'], 'a paper': [['X', 1, 2]]},
    }
    assert rows(doc_tables.comparison(data)(MODELS)) == [
        ['Swin-T', '86', '745', '50.4', '43.7', 'table 2'],
        [
            '**GC ViT** [det_t](../configs/detection/det_t.py)',
            *('85', '770', '51.6', '44.6', 'table 2'),
        ],
        ['X', '1', '2', '–', '–', 'a paper'],
    ]


@pytest.mark.parametrize(
    ('made', 'line'),
    [
        ({}, ''),
        (dict(device='CPU', date='2026-11-26'), '\n\n*CPU; 2026-11-26*'),
        (dict(settings='b', software='a'), '\n\n*a; b*'),
    ],
)
def test_measurements_say_how_they_were_made(made, line):
    table = doc_tables.measured({'columns': ['x', 'y'], 'rows': [['1', '2 s']], **made})([])
    assert table == f'| x | y |\n| --- | --- |\n| 1 | 2 s |{line}'
