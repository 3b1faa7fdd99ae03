"""Which operators mmcv uses in separate processes, and errors for a broken mmcv."""

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import mmcv
import mmdet
import pytest
import torch

from mmgcvit import mmcv_ops
from mmgcvit.errors import UserError
from mmgcvit.mmcv_ops import operator_failure, require_operators

FOLDER = Path(mmcv_ops.__file__).parent


def run_python(code, **variables):
    environment = os.environ | variables
    return subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd='/',
    )


def test_python_starts_with_the_finder_and_without_heavy_imports():
    found = run_python(
        'import sys\n'
        'print(sys.meta_path[-1].__name__)\n'
        'print({"torch", "mmengine", "mmgcvit", "mmcv", "importlib.util"} & set(sys.modules))'
    )
    # an editable installation also has a finder, which imports importlib.util
    name, modules = found.stdout.splitlines()
    assert name == 'MmcvExtFinder', found.stderr
    assert set(eval(modules)) <= {'importlib.util'}


def test_importing_the_package_adds_no_finder():
    found = run_python(
        'import sys\n'
        'sys.meta_path = [f for f in sys.meta_path if "Mmcv" not in getattr(f, "__name__", "")]\n'
        'before = list(sys.meta_path)\n'
        'import mmgcvit, mmgcvit.mmcv_ops, mmgcvit.engine\n'
        'assert sys.meta_path == before\n'
        'mmgcvit.mmcv_ops.enable()\n'
        'mmgcvit.mmcv_ops.enable()\n'
        'assert len(sys.meta_path) == len(before) + 1'
    )
    assert found.returncode == 0, found.stderr


def test_spawned_processes_find_the_operators(tmp_path):
    """Data loader workers on Windows and macOS are spawned and do not import this package."""
    script = tmp_path / 'spawn.py'
    script.write_text(
        'import multiprocessing, sys\n'
        'def work(queue):\n'
        '    import mmcv.ops, torch\n'
        '    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]])\n'
        '    queue.put(mmcv.ops.nms(boxes, torch.tensor([0.5, 0.6]), 0.5)[1].tolist())\n'
        'if __name__ == "__main__":\n'
        '    context = multiprocessing.get_context("spawn")\n'
        '    queue = context.SimpleQueue()\n'
        '    process = context.Process(target=work, args=(queue,))\n'
        '    process.start()\n'
        '    process.join()\n'
        '    print(queue.get() if process.exitcode == 0 else process.exitcode)\n'
    )
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert found.stdout == '[1]\n', found.stderr


def test_origin_of_operators():
    operators = require_operators()
    assert operators.compiled == (operators.file.parent == Path(mmcv.__file__).parent)
    assert operators.compiled or operators.file == FOLDER / '_ext.py'
    assert ('torchvision' in str(operators)) == (not operators.compiled)


def copy_mmcv(folder):
    return Path(shutil.copytree(Path(mmcv.__file__).parent, folder / 'mmcv', ignore=skipped))


def skipped(folder, names):
    return {name for name in names if name in ('csrc', '__pycache__') or name.startswith('_ext')}


def compiled_for_another_torch(folder):
    library = next(Path(torch.__file__).parent.glob('_C.*'))
    # a loadable library without the init function of the module mmcv._ext
    shutil.copy(library, copy_mmcv(folder) / f'_ext{"".join(library.suffixes)}')


def a_file_missing(folder):
    (copy_mmcv(folder) / 'ops' / 'nms.py').unlink()


def no_operators_at_all(folder):
    shutil.rmtree(copy_mmcv(folder) / 'ops')


def another_version(folder):
    version = copy_mmcv(folder) / 'version.py'
    version.write_text(version.read_text() + "\n__version__ = '2.9.0'\n")


BROKEN = {
    compiled_for_another_torch: ('compiled for another PyTorch', 'mmcv-lite'),
    a_file_missing: ('mmcv.ops.nms', 'files are missing', '--force-reinstall --no-deps'),
    no_operators_at_all: ('mmcv.ops', 'files are missing', '--force-reinstall'),
    another_version: ('mmdet does not support', '2.9.0', 'mmcv-lite>=2.1,<2.2'),
}


@pytest.fixture(scope='module')
def ends(tmp_path_factory):
    """Exit code and error output of a tool for each broken mmcv, and mmcv's files beforehand.

    The tools are forks of one process that has imported everything except mmcv.
    """
    script = (
        'import os, sys\n'
        'from mmgcvit.engine import run_tool\n'
        'from mmgcvit.mmcv_ops import require_operators\n'
        'for folder in sys.argv[1:]:\n'
        '    child = os.fork()\n'
        '    if child == 0:\n'
        '        sys.path.insert(0, folder)\n'
        '        sys.stderr = open(folder + "/stderr", "w")\n'
        '        run_tool(require_operators)\n'
        '        sys.exit(0)\n'
        '    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n'
        '    open(folder + "/code", "w").write(str(code))\n'
    )
    folders, files = {}, {}
    for spoil in BROKEN:
        folders[spoil] = folder = tmp_path_factory.mktemp(spoil.__name__)
        spoil(folder)
        files[spoil] = files_of(folder)
    command = [sys.executable, '-c', script, *folders.values()]
    subprocess.run(command, check=True, timeout=120, cwd='/')
    return {
        spoil: (
            (folder / 'code').read_text(),
            (folder / 'stderr').read_text(),
            folder,
            files[spoil],
        )
        for spoil, folder in folders.items()
    }


def files_of(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / 'mmcv').rglob('*.*') if p.suffix != '.pyc'}


@pytest.mark.parametrize('spoil', BROKEN, ids=lambda spoil: spoil.__name__)
def test_broken_mmcv_gives_one_line(ends, spoil):
    if spoil is another_version and not hasattr(mmdet, 'mmcv_maximum_version'):
        pytest.skip('the mmdet of the onedl stack takes any mmcv')
    code, error, folder, files = ends[spoil]
    assert code == '1', error
    assert error.startswith('error: ') and error.count('\n') == 1, error
    for words in BROKEN[spoil]:
        assert words in error
    assert files_of(folder) == files  # the tool does not modify the user's mmcv


def test_leftovers_of_an_uninstalled_mmcv(tmp_path, monkeypatch):
    """Python imports a folder without files as a namespace package if there is no other mmcv."""
    hollow = types.ModuleType('mmcv')
    hollow.__file__, hollow.__path__ = None, [str(tmp_path)]
    monkeypatch.setitem(sys.modules, 'mmcv', hollow)
    with pytest.raises(UserError, match=f'there is a folder {tmp_path}: remove the folder, then'):
        require_operators()


def test_no_mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    monkeypatch.setattr('importlib.metadata.distributions', lambda: [])  # of either stack
    with pytest.raises(
        UserError, match=r"^mmcv is not installed: .*pip install '(\.|mmgcvit)\[openmmlab\]'"
    ):
        require_operators()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_operator_failure_is_none_for_our_operators(dtype):
    operator_failure.cache_clear()
    assert operator_failure('cpu', dtype) is None
    operator_failure.cache_clear()


def test_operator_failure_returns_the_cause(monkeypatch):
    from mmgcvit.mmcv_ops import _ext

    def refuse(*args, **kwargs):
        raise RuntimeError('nms_impl: implementation for device cuda:0 not found.\n')

    operator_failure.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(_ext, 'nms', refuse)
        assert operator_failure('cpu', torch.float32) == (
            'RuntimeError: nms_impl: implementation for device cuda:0 not found.'
        )
    operator_failure.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(_ext, 'nms', lambda *args, **kwargs: torch.tensor([0, 2]))
        assert operator_failure('cpu', torch.float32).startswith('wrong results: boxes [0, 2]')
    operator_failure.cache_clear()
