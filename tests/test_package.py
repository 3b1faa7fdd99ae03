"""Importing the package, and finding it from other libraries' configs."""

import ast
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import packed
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from nano import NANO
from tiers import only_quick

import mmgcvit
from mmgcvit import GCViT, ops

ROOT = Path(__file__).parents[1]
# for processes that import modules of tests/
SEES_TESTS = {
    'PYTHONPATH': os.pathsep.join([str(ROOT / 'tests'), *filter(None, [os.getenv('PYTHONPATH')])])
}
NEED_MMENGINE = (
    'analysis',
    'datasets',
    'deployment',
    'engine',
    'evaluation',
    'inference',
    'projects',
    'registry',
    'visualization',
)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


def test_backbone_needs_torch_and_mmengine_only():
    found = run_python(
        'import sys\n'
        'blocked = ("mmcv", "mmdet", "mmseg", "mmpretrain", "timm", "safetensors")\n'
        'for name in blocked: sys.modules[name] = None\n'
        'import torch\n'
        'from mmgcvit import GCViT\n'
        'import mmgcvit.weights\n'
        'print(len(GCViT("xxtiny", window_size=7)(torch.zeros(1, 3, 32, 32))))'
    )
    assert found.stdout == '4\n', found.stderr


def test_without_mmengine_the_backbone_runs_and_the_rest_names_it(tmp_path):
    """A checkpoint of mmengine is loaded, and init_cfg is obeyed or refused."""
    model = GCViT(NANO, window_size=4)
    history = HistoryBuffer([1.0, 0.5], [1, 1])
    content = {'state_dict': model.state_dict(), 'message_hub': {'loss': history}}
    torch.save(content, tmp_path / 'iter_2.pth')
    found = run_python(
        'import without_mmengine\n'
        'import torch\n'
        'from mmgcvit import GCViT\n'
        'from mmgcvit.errors import UserError\n'
        'from mmgcvit.weights import open_checkpoint, read_checkpoint\n'
        f'path, arch = {str(tmp_path / "iter_2.pth")!r}, {NANO!r}\n'
        'pretrained = dict(type="Pretrained", checkpoint=path)\n'
        'model = GCViT(arch, window_size=4, init_cfg=pretrained)\n'
        'model.init_weights()\n'
        'saved = open_checkpoint(path).backbone\n'
        'print(all(torch.equal(saved[k], v) for k, v in model.state_dict().items()))\n'
        'print(read_checkpoint(path)["message_hub"]["loss"].log_history)\n'
        'for init_cfg in (None, dict(type="Kaiming"), [pretrained, dict(type="Xavier")]):\n'
        '    try: GCViT(arch, window_size=4, init_cfg=init_cfg).init_weights()\n'
        '    except UserError as error: print(error)\n'
        'import importlib\n'
        f'for name in {NEED_MMENGINE!r}:\n'
        '    try: importlib.import_module(f"mmgcvit.{name}")\n'
        '    except ModuleNotFoundError as error: print(name, error.name, error)\n',
        **SEES_TESTS,
    )
    assert found.returncode == 0, found.stderr
    same, history, *refused = found.stdout.splitlines()
    assert same == 'True'
    assert history == '[1.  0.5]'
    for line, kind in zip(refused, ('Kaiming', 'Xavier'), strict=False):
        assert line.startswith(f"init_cfg={{'type': '{kind}'}} needs mmengine")
    for line, name in zip(refused[2:], NEED_MMENGINE, strict=True):
        assert line.startswith(f'{name} mmengine No module named ')


@pytest.mark.nightly
def test_tests_of_the_backbone_pass_without_mmengine():
    hidden = [sys.executable, '-m', 'pytest', '-q', '-p', 'without_mmengine']
    names = 'golden', 'arguments', 'behaviour', 'reference', 'fx', 'trace', 'export'
    done = subprocess.run(
        hidden
        + ['tests/ops', '--ignore=tests/ops/test_changes_and_threads.py', '-k', 'not mmengine']
        + [f'tests/models/test_{name}.py' for name in names]
        + ['tests/weights/test_layouts.py', 'tests/integrations'],
        cwd=ROOT,
        env=os.environ | SEES_TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_importing_changes_nothing_of_mmengine_and_torch():
    found = run_python(
        'from mmengine.runner import CheckpointLoader\n'
        'from mmengine.config.utils import MODULE2PACKAGE\n'
        'import torch\n'
        'def settings():\n'
        '    allowed = getattr(torch.serialization, "get_safe_globals", list)()\n'
        '    threads = torch.get_num_threads()\n'
        '    return dict(CheckpointLoader._schemes), dict(MODULE2PACKAGE), set(allowed), threads\n'
        'before = settings()\n'
        'import mmgcvit.weights\n'
        'assert mmgcvit.GCViT and settings() == before'
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize('library', only_quick(['mmdet', 'mmseg', 'mmpretrain'], ['mmdet']))
def test_other_libraries_build_it_without_importing_us(library):
    found = run_python(
        f'import torch\n'
        f'from {library}.registry import MODELS\n'
        f'from mmengine.registry import init_default_scope\n'
        f'init_default_scope("{library}")\n'
        f'model = MODELS.build(dict(type="mmgcvit.GCViT", arch="xxtiny", window_size=7))\n'
        f'print(type(model).__module__, model.out_channels)'
    )
    assert found.stdout.strip() == 'mmgcvit.models.gcvit (64, 128, 256, 512)', found.stderr
    assert 'Failed' not in found.stderr + found.stdout


def test_version_is_the_one_of_the_distribution():
    from importlib.metadata import version

    assert mmgcvit.__version__ == version('mmgcvit')


def mmseg_config():
    return dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(type='mmgcvit.GCViT', arch='xxtiny', window_size=7),
        decode_head=dict(
            type='mmseg.UPerHead',
            in_channels=[64, 128, 256, 512],
            in_index=[0, 1, 2, 3],
            channels=16,
            num_classes=5,
            align_corners=False,
            loss_decode=dict(type='mmseg.CrossEntropyLoss'),
        ),
        test_cfg=dict(mode='whole'),
    )


def test_a_segmentor_runs_on_it():
    from mmengine.registry import MODELS

    model = MODELS.build(Config(mmseg_config())).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 16, 24)


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_pip_installs_and_removes_the_finder_of_mmcvs_operators(kind):
    """Both files are in the wheel's record, beside the package and not in it."""
    with zipfile.ZipFile(packed.build()[kind]) as wheel:
        names = wheel.namelist()
        record = wheel.read(next(n for n in names if n.endswith('/RECORD'))).decode()
        start = wheel.read('_mmgcvit_mmcv_ops.pth').decode()
    for end in ('py', 'pth'):
        assert f'\n_mmgcvit_mmcv_ops.{end},sha256=' in f'\n{record}'
    assert start == 'import _mmgcvit_mmcv_ops; _mmgcvit_mmcv_ops.enable()\n'
    assert not any(name.startswith('mmcv/') for name in names)
    assert {'LICENSE', 'NOTICE'} <= {Path(name).name for name in names}
    # of an editable installation, it would hide the package in the checkout
    assert kind == 'wheel' or not any(name.startswith('mmgcvit/') for name in names)


def test_wheel_holds_the_configs_and_the_tools():
    """It was built from the sdist, which therefore holds them too, and no tests."""
    with zipfile.ZipFile(packed.build()['wheel']) as wheel:
        names = {name for name in wheel.namelist() if name.startswith('mmgcvit/.mim/')}
    files = [*ROOT.glob('configs/**/*.py'), *ROOT.glob('tools/*.py'), *ROOT.glob('tools/*.sh')]
    wanted = {f'mmgcvit/.mim/{file.relative_to(ROOT).as_posix()}' for file in files}
    wanted |= {'mmgcvit/.mim/metafile.yml', 'mmgcvit/.mim/model-index.yml'}
    wanted -= {f'mmgcvit/.mim/tools/{name}' for name in packed.CHECKOUT_ONLY}
    assert names == wanted
    with tarfile.open(packed.build()['sdist']) as sdist:
        tops = {Path(name).parts[1] for name in sdist.getnames() if '/' in name}
    assert 'pyproject.toml' in tops and 'tests' not in tops
    for model in load(ROOT / 'metafile.yml')['Models']:
        assert f'mmgcvit/.mim/{model["Config"]}' in names


def test_installed_wheel_lists_its_commands_without_torch(tmp_path):
    site = packed.install(tmp_path / 'site')
    code = 'from mmgcvit.cli import main; import sys; main(); assert "torch" not in sys.modules'
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert '\n  flops                Print the parameters and multiply-accumulates' in done.stdout
    assert done.stdout.endswith(f'{site}/mmgcvit/.mim/configs\n')


def test_extras_name_one_mmcv_each():
    """mmcv-lite would overwrite the files of a compiled mmcv."""
    from importlib.metadata import requires

    named = {
        extra: [r for r in requires('mmgcvit') if 'mmcv' in r and f'extra == "{extra}"' in r]
        for extra in ('openmmlab', 'openmmlab-compiled', 'onedl')
    }
    wanted = {'openmmlab': 'mmcv-lite<', 'openmmlab-compiled': 'mmcv<', 'onedl': 'onedl-mmcv<'}
    for extra, start in wanted.items():
        (requirement,) = named[extra]
        assert requirement.startswith(start)


@pytest.mark.nightly
@pytest.mark.parametrize('extra', ['openmmlab', 'onedl'])
def test_wheel_in_an_empty_environment_and_folder_without_a_compiler(tmp_path, extra):
    """With nothing but the environment's own commands in PATH."""
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
    folder = tmp_path / 'env' / 'bin'
    (tmp_path / 'empty').mkdir()

    def run(*command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
        done = subprocess.run(
            [folder / command[0], *command[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path / 'empty',
            env=dict(environment, PATH=str(folder)),
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    wheel, sdist = (packed.build()[kind] for kind in ('wheel', 'sdist'))
    run('pip', 'install', 'torch', 'torchvision')
    run('pip', 'install', f'{wheel}[{extra}]')
    assert 'No broken requirements found' in run('pip', 'check')
    printed = run('mmgcvit', 'check-env')
    assert 'torchvision 0.' in printed and printed.endswith('no problems found\n')
    run('mmgcvit', 'draw-shapes', 'data/shapes', '--num-train', '4', '--num-val', '2')
    printed = run('mmgcvit', 'rehearse', 'detection/mask_rcnn_gcvit_shapes.py')
    assert printed.endswith('no step failed\n')
    run('pip', 'uninstall', '--yes', 'mmgcvit')
    assert not list(folder.parent.rglob('*mmgcvit*'))
    # from the sdist, pip builds in isolation
    run('pip', 'install', '--no-deps', str(sdist))
    assert run('mmgcvit', '--version') == f'mmgcvit {mmgcvit.__version__}\n'
    run('pip', 'install', 'twine')
    run('twine', 'check', '--strict', str(wheel), str(sdist))


def test_of_the_network_one_file_uses_ops_and_others_its_public_functions():
    package = Path(mmgcvit.__file__).parent
    users = set()
    for path in package.rglob('*.py'):
        if path.parent.name == 'ops':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not (node.module or '').startswith(
                ('mmcv', 'torchvision')
            ):
                # the package as a whole, no module or name within it
                assert 'ops' not in (node.module or '').split('.'), path
                if 'ops' in {alias.name for alias in node.names}:
                    users.add(path.relative_to(package).as_posix())
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != 'ops' or node.attr in ops.__all__, path
    assert users == {'models/gcvit.py', 'models/variants.py', 'weights/fit.py'}
