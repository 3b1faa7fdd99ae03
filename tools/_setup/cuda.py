"""Whether mmcv is built with its CUDA operators, and why."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SetupError

# Included by torch's own headers, so every CUDA extension needs them; the
# packages of a toolkit can be installed one by one, so they may be missing.
HEADERS = (
    'cuda_runtime.h',
    'cublas_v2.h',
    'cublasLt.h',
    'cusparse.h',
    'cusolverDn.h',
    'curand_kernel.h',
)
# Where no GPU tells: Turing, Ampere (code for 8.0 runs on 8.6 and 8.9 too),
# Hopper, and by just-in-time compilation all later ones.
DEFAULT_ARCHITECTURES = '7.5;8.0;9.0+PTX'


@dataclass(frozen=True)
class TorchInfo:
    """What the installed torch says of itself; ``gpus`` are the capabilities, such as '9.0'."""

    version: str
    cuda: str | None
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit, or the reason why it cannot be used."""

    root: Path | None
    release: str = ''
    problem: str = ''


@dataclass(frozen=True)
class Choice:
    """The variant of mmcv to build: a name for the cache, the reason, the build's variables."""

    variant: str
    reason: str
    env: dict[str, str] = field(default_factory=dict)
    warning: str = ''


def choose(torch: TorchInfo, environ: Mapping[str, str]) -> Choice:
    """Decide between CPU and CUDA operators.

    Raises:
        SetupError: ``MMGCVIT_CUDA_OPS`` is 1 and they cannot be built, or is no known value.
    """
    wish = environ.get('MMGCVIT_CUDA_OPS') or 'auto'
    if wish not in ('0', '1', 'auto'):
        raise SetupError(f'MMGCVIT_CUDA_OPS={wish}', 'give 1, 0 or auto')
    toolkit = find_toolkit(torch.cuda, environ)
    if wish == '0':
        return _cpu(torch, 'MMGCVIT_CUDA_OPS=0', 'unset MMGCVIT_CUDA_OPS and run this again')
    if toolkit.problem:
        remedy = _remedy(torch)
        if wish == '1':
            raise SetupError(f'MMGCVIT_CUDA_OPS=1, but {toolkit.problem}', remedy)
        return _cpu(torch, toolkit.problem, remedy)
    return _cuda(torch, toolkit, environ)


def _remedy(torch: TorchInfo) -> str:
    if not torch.cuda:
        return 'install a torch with CUDA (PIP_INDEX_URL and the like decide which one you get)'
    return (
        f'install the whole CUDA {torch.cuda} toolkit (compiler, headers, libraries), name it with '
        'CUDA_HOME=/path/to/cuda, and run bash tools/setup_env.sh again'
    )


def _cpu(torch: TorchInfo, reason: str, remedy: str) -> Choice:
    warning = ''
    if torch.gpus:
        warning = (
            f'this machine has a GPU, but mmcv gets CPU operators only ({reason}): '
            f'detectors will run on the CPU. Remedy: {remedy}'
        )
    # Where torch sees a GPU, mmcv's setup.py would build for CUDA unasked.
    return Choice('cpu', reason, {'FORCE_CUDA': '0', 'CUDA_VISIBLE_DEVICES': ''}, warning)


def _cuda(torch: TorchInfo, toolkit: Toolkit, environ: Mapping[str, str]) -> Choice:
    architectures = environ.get('TORCH_CUDA_ARCH_LIST', '')
    why = 'TORCH_CUDA_ARCH_LIST'
    if not architectures and torch.gpus:
        architectures, why = ';'.join(sorted(set(torch.gpus))), 'the GPUs here'
    elif not architectures:
        architectures, why = DEFAULT_ARCHITECTURES, 'no GPU here, so a general choice'
    words = re.sub(r'[^\w.+]+', '-', architectures).strip('-')
    env = {
        'FORCE_CUDA': '1',
        'CUDA_HOME': str(toolkit.root),
        'PATH': f'{toolkit.root}/bin:{environ.get("PATH", "")}',
        'TORCH_CUDA_ARCH_LIST': architectures,
    }
    reason = f'nvcc {toolkit.release} at {toolkit.root}, for {architectures} ({why})'
    # A wheel runs on the GPUs it was compiled for, so they belong in its name.
    return Choice(f'{cuda_tag(torch.cuda)}-{words}', reason, env)


def cuda_tag(version: str | None) -> str:
    """'13.0' as 'cu130'."""
    return 'cu' + (version or '').replace('.', '')


def find_toolkit(wanted: str | None, environ: Mapping[str, str]) -> Toolkit:
    """The first complete toolkit of torch's major version, else what is wrong with the first one.

    Args:
        wanted: The CUDA version torch was built with.
        environ: Where CUDA_HOME, CUDA_PATH and PATH come from.
    """
    if not wanted:
        return Toolkit(None, problem='this torch was built without CUDA')
    problems = []
    for root in _roots(environ):
        toolkit = _inspect(root, wanted)
        if not toolkit.problem:
            return toolkit
        problems.append(toolkit)
    return problems[0] if problems else Toolkit(None, problem='no nvcc was found')


def _roots(environ: Mapping[str, str]) -> list[Path]:
    roots = [Path(environ[name]) for name in ('CUDA_HOME', 'CUDA_PATH') if environ.get(name)]
    if nvcc := shutil.which('nvcc', path=environ.get('PATH', '')):
        roots += [Path(nvcc).resolve().parents[1]]
    roots += [Path('/usr/local/cuda')]
    # A wrapper in a folder of commands is an nvcc, but has no toolkit around it.
    with_nvcc = [root.resolve() for root in roots if (root / 'bin/nvcc').exists()]
    toolkits = [root for root in with_nvcc if _missing_headers(root) != list(HEADERS)]
    return list(dict.fromkeys(toolkits or with_nvcc))


def _inspect(root: Path, wanted: str) -> Toolkit:
    nvcc = root / 'bin/nvcc'
    try:
        result = subprocess.run([nvcc, '--version'], capture_output=True, text=True, timeout=20)
        release = re.search(r'release (\d+\.\d+)', result.stdout)
    except (OSError, subprocess.TimeoutExpired):
        release = None
    if not release:
        return Toolkit(root, problem=f'{nvcc} does not run')
    if release[1].split('.')[0] != wanted.split('.')[0]:
        problem = f'{nvcc} is CUDA {release[1]} and torch was built with {wanted}'
        return Toolkit(root, release[1], problem)
    missing = _missing_headers(root)
    if not any(root.glob(f'{folder}/libcudart.so*') for folder in _LIBRARY_FOLDERS):
        missing.append('libcudart.so')
    problem = f'the toolkit of {nvcc} lacks {", ".join(missing)}' if missing else ''
    return Toolkit(root, release[1], problem)


_LIBRARY_FOLDERS = ('lib64', 'lib', 'targets/*/lib', 'lib/*-linux-gnu')


def _missing_headers(root: Path) -> list[str]:
    folders = [root / 'include', *root.glob('targets/*/include')]
    return [name for name in HEADERS if not any((folder / name).exists() for folder in folders)]
