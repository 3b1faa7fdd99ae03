import gc
import importlib.util
import logging
from pathlib import Path

import pytest
import repeated
import torch
from mmengine.logging import MMLogger

NANO = {
    'embed_dims': 8,
    'depths': (2, 1, 3, 2),
    'num_heads': (1, 2, 2, 4),
    'mlp_ratio': 2,
    'layer_scale_init_value': 0.5,
}


@pytest.fixture
def nano():
    """A very small arch with every kind of part in it, and one stage without a global block."""
    return dict(NANO)


def pytest_collection_finish():
    # mmengine collects garbage for every dataset: it need not look through all that is imported
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def nothing_done_twice():
    """By mmengine, as far as tests/repeated.py knows better."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in repeated.remembering():
            patch.setattr(module, name, function)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def log(monkeypatch):
    """What mmengine logs, in whichever of its loggers, as a list of messages."""
    messages = []

    def handle(self, record):
        messages.append(record.getMessage())
        logging.Logger.handle(self, record)

    monkeypatch.setattr(MMLogger, 'handle', handle)
    return messages


@pytest.fixture(scope='session')
def load_tool():
    """Import ``tools/NAME.py`` as a module."""

    def load(name):
        path = Path(__file__).parents[1] / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'{name}_tool', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
