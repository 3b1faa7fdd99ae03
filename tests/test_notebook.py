"""The notebook in docs/: its code, commands and stored outputs, and a run of all of it."""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import packed
import pytest

from mmgcvit.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PATH = ROOT / 'docs' / 'notebooks' / 'detector.ipynb'


def code_cells(path):
    cells = json.loads(path.read_text())['cells']
    return [cell for cell in cells if cell['cell_type'] == 'code']


def source(cell):
    return ''.join(cell['source'])


def printed(cell):
    return ''.join(''.join(output.get('text', ())) for output in cell['outputs'])


def pictures(cell):
    return [data for output in cell['outputs'] if (data := output.get('data', {}).get('image/png'))]


CELLS = code_cells(PATH)
BASH = [source(cell) for cell in CELLS if source(cell).startswith('%%bash')]
PYTHON = [source(cell) for cell in CELLS if not source(cell).startswith('%')]


def test_imports_of_the_notebook_exist():
    modules = [node for text in PYTHON for node in ast.walk(ast.parse(text))]
    imported = {
        (node.module, alias.name)
        for node in modules
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module != 'IPython.display'  # belongs to the notebook's kernel
    }
    assert ('mmgcvit', 'GCViT') in imported
    for module, name in imported:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_commands_of_the_notebook_exist_with_their_options():
    engine = ROOT / 'mmgcvit' / 'engine'
    shared = [engine / name for name in ('tool.py', 'training_options.py')]
    used = set()
    for text in BASH:
        magic, _, script = text.partition('\n')
        assert magic == '%%bash -e'  # a command that fails ends the cell
        for line in script.replace('\\\n', ' ').splitlines():
            program, command, *arguments = shlex.split(line)
            assert program == 'mmgcvit'
            used.add(command)
            files = [ROOT / 'tools' / COMMANDS[command], *shared]
            parsers = ''.join(file.read_text() for file in files)
            for argument in arguments:
                assert not argument.startswith('-') or f"'{argument}'" in parsers, argument
                if argument.startswith('detection/'):
                    assert (ROOT / 'configs' / argument).is_file()
    assert used == {'draw-shapes', 'check-data', 'train', 'plot-log', 'demo', 'visualize'}


def test_links_of_the_notebook_exist():
    for cell in json.loads(PATH.read_text())['cells']:
        for link in re.findall(r'\]\((\S+)\)', source(cell)):
            assert '://' in link or (PATH.parent / link).is_file(), link


def check_outputs(cells):
    text = ''.join(map(printed, cells))
    assert not [o for cell in cells for o in cell['outputs'] if o['output_type'] == 'error']
    epochs = int(re.search(r'train_cfg\.max_epochs=(\d+)', ''.join(BASH))[1])
    assert 'no problems found' in text and f'Epoch(train) [{epochs}][75/75]' in text
    mask_aps = re.findall(r'mask AP (\d\.\d+)', text)
    assert len(mask_aps) == epochs // 2 and float(mask_aps[-1]) > 0.7
    assert printed(cells[-1]).endswith(
        '179 tensors loaded, 0 not in the file\n(1, 32, 32, 40)\n(1, 64, 16, 20)\n(1, 128, 8, 10)\n'
    )
    # the curves, the predictions and the maps
    assert [len(pictures(cell)) for cell in cells if pictures(cell)] == [1, 1, 1]


def test_stored_outputs_are_complete_and_small():
    check_outputs(CELLS)
    assert PATH.stat().st_size < 1e6
    text = PATH.read_text()
    assert not re.search(r'/(?:tmp|home|root|usr|opt)/', text)
    # the text states the last result
    assert f'epochs is {re.findall("mask AP ([0-9.]+)", text)[-1]}' in text


@pytest.mark.nightly
def test_notebook_runs(tmp_path):
    """In an environment with the packages of this one, to which pip adds the notebook's."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    venv.create(tmp_path / 'venv', with_pip=True)
    (packages,) = (tmp_path / 'venv').glob('lib/python*/site-packages')
    (packages / 'base.pth').write_text('\n'.join(site.getsitepackages()))
    requirements = ROOT / 'requirements' / 'docs.txt'
    subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', requirements], check=True)
    copy = tmp_path / PATH.name
    shutil.copy(PATH, copy)
    command = [python, ROOT / 'docs' / 'site' / 'run_notebook.py', copy, packed.build()['wheel']]
    # the installed package, and not this checkout
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r'^ *\d+\.\d s  ', done.stdout, re.MULTILINE)) == len(CELLS)
    cells = code_cells(copy)
    check_outputs(cells)
    assert '.venv/lib/' in ''.join(map(printed, cells))
    assert list(map(source, cells)) == list(map(source, CELLS))
    assert str(tmp_path) not in copy.read_text() and sys.prefix not in copy.read_text()
