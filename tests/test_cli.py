"""The command mmgcvit: scripts of tools/ under one name."""

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import forks
import packed
import pytest
from toy import toy_config

from mmgcvit import cli, installed
from mmgcvit.engine.known_errors import known_error
from mmgcvit.installed import config_names, config_path, resources

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mmgcvit(tmp_path):
    """Run a command in a fork, in an empty folder; return its exit code and what it printed."""
    script = tmp_path / 'mmgcvit'  # as pip writes it
    script.write_text('from mmgcvit.cli import main\nmain()\n')
    (tmp_path / 'empty').mkdir()

    def run(*arguments, **variables):
        settings = dict(out=tmp_path / 'out', cwd=tmp_path / 'empty', **variables)
        return forks.run(script, *arguments, **settings)

    return run


@pytest.fixture
def in_this_process(monkeypatch, capsys):
    """Run a command that starts no Python script; return its exit code and what it printed."""
    monkeypatch.setenv(cli.PYTHON, '')

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['mmgcvit', *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, ''.join(capsys.readouterr())

    return run


def test_every_tool_has_a_command(in_this_process):
    code, printed = in_this_process('--help')
    assert code == 0 and in_this_process() == (0, printed)
    tools = {path.name for end in ('py', 'sh') for path in ROOT.glob(f'tools/[!_]*.{end}')}
    assert {*cli.COMMANDS.values()} == tools - packed.CHECKOUT_ONLY
    for name in cli.COMMANDS:
        assert f'\n  {name:19}  ' in printed


def test_an_unknown_command_names_a_close_one(in_this_process):
    code, printed = in_this_process('trian', 'config.py')
    assert code == 2
    assert printed == "error: unknown command 'trian' (did you mean train?): run mmgcvit --help\n"


def test_version(in_this_process):
    assert in_this_process('--version') == (0, f'mmgcvit {cli.__version__}\n')


def test_a_shell_script_gets_the_python_and_the_arguments(in_this_process, monkeypatch):
    calls = []
    monkeypatch.setattr(os, 'execvp', lambda *call: calls.append(call))
    assert in_this_process('dist-train', 'config.py', '8', '--amp') == (0, '')
    script = str(resources() / 'tools' / 'dist_train.sh')
    assert calls == [('bash', ['bash', script, 'config.py', '8', '--amp'])]
    assert os.environ[cli.PYTHON] == sys.executable


@pytest.mark.parametrize(('arguments', 'code'), [((), 2), (('--help',), 0), (('a.py', '-h'), 0)])
def test_usage_of_a_shell_script(in_this_process, arguments, code):
    found, printed = in_this_process('dist-train', *arguments)
    assert found == code
    assert '\n  mmgcvit dist-train CONFIG GPUS [arguments of mmgcvit train]\n' in printed


def test_help_and_errors_name_commands(mmgcvit):
    code, printed = mmgcvit('rehearse', '--help')
    assert code == 0 and printed.startswith('usage: mmgcvit rehearse [-h]')
    assert '\n    mmgcvit rehearse CONFIG [options of mmgcvit train]\n' in printed
    code, printed = mmgcvit('rehearse', 'config.py', '--no-rehearsal')
    assert code == 2
    assert printed.endswith('is an option of mmgcvit train: remove it, or run train.py\n')


def test_a_training(mmgcvit, tmp_path):
    imports = dict(imports=['toy'])
    config = toy_config(tmp_path / 'work', iterations=1, custom_imports=imports)
    config.dump(tmp_path / 'config.py')
    code, printed = mmgcvit('train', tmp_path / 'config.py')
    assert code == 0, printed
    assert (tmp_path / 'work' / 'iter_1.pth').is_file()


def test_a_packaged_config_is_found_by_its_name(mmgcvit):
    name = 'detection/mask_rcnn_gcvit_shapes.py'
    for given in (name, f'configs/{name}', f'mmgcvit::{name}'):
        code, printed = mmgcvit('check-data', given)
        assert code == 1 and '2 problems found' in printed  # the data is not here
        # a file with that path in the current folder has precedence
        path = Path(given).resolve() if Path(given).is_file() else config_path(name)
        assert f'config: {path}\n' in printed


def test_resources_are_those_of_the_checkout_or_of_the_wheel():
    package = Path(installed.__file__).parent
    assert resources() == (ROOT if package.parent == ROOT else package / '.mim')
    assert 'detection/cascade_gcvit_s.py' in config_names()


def test_a_tool_of_another_version_than_the_package(tmp_path):
    copy = tmp_path / 'tools' / 'plot_log.py'
    copy.parent.mkdir()
    copy.write_text((ROOT / 'tools' / 'plot_log.py').read_text())
    (tmp_path / 'mmgcvit').mkdir()
    (tmp_path / 'mmgcvit' / 'version.py').write_text("__version__ = '9.8'\n")
    code, printed = forks.run(copy, tmp_path, out=tmp_path / 'out')
    assert code == 1 and printed.count('\n') == 1
    assert f'plot_log.py has version 9.8, but imports version {cli.__version__}' in printed
    assert f'pip install --editable {tmp_path}' in printed


@pytest.mark.parametrize(
    ('found', 'extra'),
    [
        ([], "'{}[openmmlab]' (or '{}[onedl]', never both)"),
        (['torch', 'mmcv-lite'], "'{}[openmmlab]' (or '{}[onedl]', never both)"),
        (['mmcv'], "'{}[openmmlab-compiled]'"),
        (['numpy', 'onedl-mmengine'], "'{}[onedl]'"),
    ],
)
def test_what_to_install_overwrites_nothing(monkeypatch, found, extra):
    distributions = [types.SimpleNamespace(metadata={'Name': name}) for name in found]
    monkeypatch.setattr(importlib.metadata, 'distributions', lambda: distributions)
    for folder, start in ((ROOT, 'in a checkout of mmgcvit, '), (Path('mmgcvit/.mim'), '')):
        monkeypatch.setattr(installed, 'resources', lambda folder=folder: folder)
        package = '.' if start else 'mmgcvit'
        command = f'{start}run pip install {extra.format(package, package)}'
        assert installed.install_command() == command


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(installed, 'install_command', lambda: 'run pip')
    for name in ('mmengine', 'mmdet', 'ftfy'):
        error = ModuleNotFoundError('none', name=name)
        wanted = f'{name} is not installed in the Python environment {sys.prefix}: run pip'
        assert installed.missing_library(error) == known_error(error) == wanted
    # a part of an installed library, and a module that no extra brings
    for name in ('mmcv._ext', 'my_module'):
        assert installed.missing_library(ModuleNotFoundError('none', name=name)) is None
    assert installed.missing_library(ImportError('none', name='mmengine')) is None


@pytest.mark.parametrize(
    'command',
    [
        ('-m', 'mmgcvit', 'publish', 'in.pth', 'out.pth'),
        (str(ROOT / 'tools' / 'train.py'), 'config.py'),
    ],
    ids=['command', 'script'],
)
def test_without_mmengine_a_tool_prints_one_line(tmp_path, command):
    (tmp_path / 'sitecustomize.py').write_text('import without_mmengine')
    paths = [tmp_path, ROOT / 'tests', ROOT]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: mmengine is not installed in the Python environment ')


@pytest.mark.parametrize('option', ['--help', '--version'])
def test_a_reader_that_has_ended_is_no_error(option):
    reader, writer = os.pipe()
    os.close(reader)
    code = 'from mmgcvit.cli import main; main()'
    done = subprocess.run(
        [sys.executable, '-c', code, option],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b'')
