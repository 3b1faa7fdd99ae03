"""tools/check_env.py: the report of this environment, and known bad ones by their versions."""

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmgcvit import installed


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('check_env')


@pytest.fixture(autouse=True)
def in_a_checkout(monkeypatch):
    """The remedies of a wheel differ, see tests/test_cli.py."""
    monkeypatch.setattr(installed, 'resources', lambda: Path(__file__).parents[2])


@pytest.fixture
def run(tool, monkeypatch, capsys):
    """Run the tool and return its exit code and what it printed."""

    def run():
        monkeypatch.setattr(sys, 'argv', ['check_env.py'])
        code = tool.main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_good_environment(run):
    code, printed = run()
    assert code == 0, printed
    assert printed.endswith('no problems found\n')
    for words in ('Python ', 'torch ', 'mmengine ', 'mmdet ', "mmcv's operators ", 'on cpu '):
        assert words in printed
    assert 'float32' in printed.partition('on cpu')[2]


@pytest.fixture
def failing(tool, monkeypatch):
    """Let the import of a module fail, in the tool alone: mmengine imports them as well."""

    def fail(module, error):
        def import_module(name):
            if name.partition('.')[0] == module:
                raise error
            return importlib.import_module(name)

        importing = SimpleNamespace(import_module=import_module, metadata=importlib.metadata)
        monkeypatch.setattr(tool, 'importlib', importing)

    return fail


BEFORE = dict(mmengine='0.10.7', mmdet='3.3.0')


@pytest.mark.parametrize(
    ('installed', 'words'),
    [
        (dict(BEFORE, mmcv='2.1.0'), None),
        ({**BEFORE, 'mmcv-lite': '2.1.0'}, None),
        ({'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}, None),
        ({**BEFORE, 'mmcv': '2.1.0', 'mmcv-lite': '2.0.1'}, 'pip uninstall mmcv mmcv-lite'),
        ({**BEFORE, 'onedl-mmcv': '2.3.6'}, 'both stacks are installed'),
        ({'opencv-python': '4.12.0.88', 'opencv-python-headless': '4.12.0.88'}, None),
        (
            {'opencv-python': '5.0.0.93', 'opencv-python-headless': '4.12.0.88'},
            'opencv-python 5.0.0.93 and opencv-python-headless 4.12.0.88 are both',
        ),
    ],
)
def test_what_must_not_be_installed_together(tool, installed, words):
    found = list(tool.conflicts(installed))
    assert len(found) == bool(words)
    assert all(words in problem for problem in found)


@pytest.mark.parametrize(
    ('versions', 'words'),
    [
        (dict(torch='2.1.2', torchvision='0.16.2', numpy='1.26.4', setuptools='69.0'), None),
        (dict(torch='2.9.1+cu128', torchvision='0.24.1', numpy='2.3.5'), None),
        (dict(torch='2.9.1', torchvision='0.25.0'), 'torchvision==0.24.*'),
        (dict(torch='2.0.1', torchvision='0.15.2'), 'install 2.1 or newer'),
        (dict(torch='2.2.0', numpy='2.0.1'), 'numpy<2'),
        (dict(torch='2.9.1', mmpretrain='1.2.0', transformers='5.17.0'), 'transformers<5'),
        (dict(torch='2.9.1', mmpretrain='1.2.0', transformers='4.57.1'), None),
        (dict(torch='2.9.1', transformers='5.17.0'), None),
    ],
)
def test_versions_that_do_not_fit(tool, versions, words):
    found = list(tool.mismatches(versions))
    assert len(found) == bool(words), found
    assert all(words in problem for problem in found)


def test_pkg_resources_is_missed_by_openmmlabs_mmengine_alone(tool, monkeypatch):
    versions = dict(torch='2.9.1', setuptools='82.0.1')
    for packages, count in (({'mmengine': '0.10.7'}, 1), ({}, 0)):
        monkeypatch.setattr(tool, 'versions_of', lambda names, found=packages: found)
        found = list(tool.mismatches(versions))
        assert len(found) == count
        assert all('setuptools<81' in problem for problem in found)


@pytest.mark.parametrize(
    ('module', 'error', 'words'),
    [
        (
            'cv2',
            ImportError('libGL.so.1: cannot open shared object file'),
            'opencv-python-headless',
        ),
        ('mmdet', AssertionError('MMCV==2.2.0 is used but incompatible'), 'mmcv-lite>=2.1,<2.2'),
        ('mmseg', ModuleNotFoundError("No module named 'ftfy'", name='ftfy'), 'install ftfy regex'),
        ('cv2', ModuleNotFoundError('no such', name='cv2'), 'not installed: cv2: in a checkout'),
    ],
)
def test_an_import_that_fails(run, failing, module, error, words):
    failing(module, error)
    code, printed = run()
    assert code == 1
    (line,) = [line for line in printed.splitlines() if line.startswith('1. ')]
    assert words in line and module in line
    assert '\n2. ' not in printed


def test_one_library_is_enough(run, failing):
    failing('mmpretrain', ModuleNotFoundError('no such', name='mmpretrain'))
    code, printed = run()
    assert code == 0, printed
    assert '\nmmpretrain ' in printed


def test_operators_that_do_not_run(run, monkeypatch):
    from mmgcvit import mmcv_ops

    def fail_in_single(device, dtype):
        return 'no kernel' if dtype is torch.float32 else None

    monkeypatch.setattr(mmcv_ops, 'operator_failure', fail_in_single)
    code, printed = run()
    assert code == 1
    assert "1. mmcv's operators fail on cpu (no kernel): " in printed
