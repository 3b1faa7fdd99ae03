"""Plain values and type hints."""

from typing import Any, Literal, Optional, TypedDict

import numpy as np
import pytest
import torch

from mmgcvit.engine.kinds import mismatch


class Inner(TypedDict, total=False):
    sizes: list[int]


class Outer(TypedDict):
    name: str
    inner: Inner | None


@pytest.mark.parametrize(
    ('value', 'kind'),
    [
        (3, int),
        (3, float),
        (None, Optional[int]),  # noqa: UP045
        ([1, 2], tuple[int, ...]),
        ((1, 2), list[int]),
        ((1, 'a'), tuple[int, str]),
        ({'a': [1.5]}, dict[str, list[float]]),
        ('b', Literal['a', 'b']),
        (torch.ones(2), torch.Tensor | None),
        (np.ones(2), np.ndarray),
        ({'name': 'x', 'inner': {}, 'more': 1}, Outer),
        ({'name': 'x', 'inner': {'sizes': []}}, Outer),
        (Ellipsis, Any),
        (Ellipsis, 'a name that is not known'),
    ],
    ids=str,
)
def test_values_that_match(value, kind):
    assert mismatch(value, kind, 'it') is None


@pytest.mark.parametrize(
    ('value', 'kind', 'text'),
    [
        ('3', int, "it is '3', but has to be int"),
        (1.0, int, 'it is 1.0, but has to be int'),
        ('x', int | None, "it is 'x', but has to be int or None"),
        ([1, 'a'], list[int], "it.1 is 'a', but has to be int"),
        ((1, 2), tuple[int], 'it has 2 values, but has to have 1'),
        ({'a': None}, dict[str, float], 'it.a is None, but has to be float'),
        ({1: 2.0}, dict[str, float], 'a name in it is 1, but has to be str'),
        ({'a': {}}, dict[str, str] | None, 'it.a is a dict, but has to be str'),
        ('c', Literal['a', 'b'], "it is 'c', but has to be 'a' or 'b'"),
        (torch.ones(2), Literal['a'], "it is a Tensor, but has to be 'a'"),
        (7, Outer, 'it is 7, but has to be dict'),
        ({'name': 'x'}, Outer, 'it.inner is missing'),
        ({'name': 'x', 'inner': {'sizes': 7}}, Outer, 'it.inner.sizes is 7, but has to be list'),
    ],
    ids=str,
)
def test_the_part_that_does_not_match_is_named(value, kind, text):
    assert mismatch(value, kind, 'it') == text
