"""Hides mmengine, as where it is not installed.

As a plugin, it replaces tests/conftest.py, which imports mmengine:

    PYTHONPATH=tests python -m pytest --noconftest -p without_mmengine tests/models/test_golden.py
"""

import sys

import pytest
import torch
from nano import NANO


class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'mmengine':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Hide())


@pytest.fixture
def nano():
    return dict(NANO)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
