"""The cache of position biases computes biases once, is bounded and frees its memory.

test_changes_and_threads.py tests that it detects every change of a table.
"""

import gc
import importlib

import pytest
import torch

from mmgcvit import GCViT

MODULE = importlib.import_module('mmgcvit.ops.bias_cache')


@pytest.fixture
def computed(monkeypatch):
    """Record the tables whose biases are computed."""
    tables = []

    def counting(table, *args, **kwargs):
        tables.append(table)
        return compute(table, *args, **kwargs)

    compute = MODULE.position_biases
    monkeypatch.setattr(MODULE, 'position_biases', counting)
    return tables


@pytest.fixture
def model(nano):
    return GCViT(nano, window_size=4).eval()


def evaluate(model, *sizes):
    with torch.no_grad():
        return [model(torch.ones(1, 3, *size)) for size in sizes]


def tables_of(model):
    return [p for name, p in model.named_parameters() if name.endswith('bias_table')]


def bytes_kept(model):
    entries = [MODULE._cache[table] for table in tables_of(model)]
    return sum(
        bias.untyped_storage().nbytes() for entry in entries for bias in entry.biases.values()
    )


def test_biases_are_computed_once(model, computed):
    first, second = evaluate(model, (50, 70), (50, 70))
    assert len(computed) == len(tables_of(model)) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        model(torch.ones(3, 3, 50, 70))
    assert len(computed) == 8
    with torch.no_grad():
        tables_of(model)[2][5, 0] += 1
    evaluate(model, (50, 70))
    assert len(computed) == 9 and computed[-1] is tables_of(model)[2]


def test_partial_windows_are_only_cached_for_the_last_image_size(model):
    evaluate(model, (50, 70))
    alone = bytes_kept(model)
    evaluate(model, *((32 + 4 * i, 96 - 4 * i) for i in range(12)), (50, 70))
    assert bytes_kept(model) == alone


def test_full_windows_are_cached_for_all_image_sizes(model, monkeypatch):
    computed = []
    compute = MODULE.position_biases
    monkeypatch.setattr(
        MODULE,
        'position_biases',
        lambda table, windows, dtype, regions, **kwargs: (
            computed.extend((r.height, r.width) for r in regions)
            or compute(table, windows, dtype, regions, **kwargs)
        ),
    )
    sizes = [(80, 96), (84, 96), (80, 96), (96, 84)]
    together = evaluate(model, *sizes)
    # at most once per table; biases of the edges are computed for each image
    assert computed.count((4, 4)) <= 8 < len(computed)
    for size, expected in zip(sizes, together, strict=True):
        MODULE._cache.clear()
        (alone,) = evaluate(model, size)
        assert all(torch.equal(a, b) for a, b in zip(alone, expected, strict=True))


def test_each_dtype_has_its_own_biases(model, computed):
    evaluate(model, (50, 70))
    with torch.autocast('cpu', torch.bfloat16):
        evaluate(model, (50, 70))
    assert len(computed) == 16
    assert {bias.dtype for bias in MODULE._cache[tables_of(model)[3]].biases.values()} >= {
        torch.bfloat16
    }


def test_training_frees_the_cache(model):
    evaluate(model, (50, 70))
    model.train()(torch.ones(1, 3, 50, 70))
    assert not any(table in MODULE._cache for table in tables_of(model))


def test_cache_is_freed_with_the_model(nano):
    gc.collect()
    before = len(MODULE._cache)
    model = GCViT(nano, window_size=4).eval()
    evaluate(model, (50, 70))
    assert len(MODULE._cache) == before + 8
    del model
    gc.collect()
    assert len(MODULE._cache) == before
