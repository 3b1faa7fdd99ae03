import gc
import importlib.util
import logging
import os
from pathlib import Path

# Before torch is imported. Several threads are slower than one on small tensors: they wait for each
# other, and for the threads of other test processes on the same cores.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from nano import NANO

try:
    import repeated
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    repeated = None  # see tests/without_mmengine.py


@pytest.fixture
def nano():
    """A very small arch with every kind of part in it, and one stage without a global block."""
    return dict(NANO)


# These files share session fixtures that train; one process runs them all. It begins with them:
# the process that ran them last would end long after the others.
LAUNCHING = {f'tests/tools/test_{name}.py' for name in ('launching', 'fsdp_launching', 'slurm')}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.nodeid.partition('::')[0] not in LAUNCHING)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadfile`` of pytest-xdist, schedule the files above as one."""
    if config.getoption('dist') != 'loadfile':
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return 'launching' if file in LAUNCHING else file

    return Scheduling(config, log)


def pytest_collection_finish():
    # mmengine collects garbage for every dataset: it need not look through all that is imported
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def nothing_done_twice():
    """By mmengine, as far as tests/repeated.py knows better."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in repeated.remembering() if repeated else ():
            patch.setattr(module, name, function)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def log(monkeypatch):
    """What mmengine logs, in whichever of its loggers, as a list of messages."""
    from mmengine.logging import MMLogger

    messages = []

    def handle(self, record):
        messages.append(record.getMessage())
        logging.Logger.handle(self, record)

    monkeypatch.setattr(MMLogger, 'handle', handle)
    # measurements set the level of the current logger, in processes of their own outside of tests
    monkeypatch.setattr(MMLogger, 'isEnabledFor', lambda self, level: level >= logging.INFO)
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


@pytest.fixture(scope='session')
def untrained_folder(tmp_path_factory):
    return tmp_path_factory.mktemp('untrained')


@pytest.fixture
def models(untrained_folder, monkeypatch):
    """The small models of tests/untrained.py, with data that their configs find."""
    import untrained

    monkeypatch.setenv('SHAPES', str(untrained_folder / 'shapes'))
    monkeypatch.syspath_prepend(str(untrained.DATA / 'scripts'))
    if not (untrained_folder / 'shapes').exists():
        return untrained.draw(untrained_folder)
    return untrained.Models(untrained_folder)
