"""Configs, tools and extras of the installed package.

Imports neither torch nor mmengine.
"""

import importlib.metadata
import os
import re
import sys
from pathlib import Path

from .errors import UserError, did_you_mean
from .version import __version__

# modules of the extra openmmlab that tools import
OPENMMLAB = {
    *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'),
    *('torchvision', 'ftfy', 'regex', 'pkg_resources'),
}


def resources() -> Path:
    """Return the folder that contains ``configs``, ``tools`` and ``metafile.yml``.

    This is the folder ``.mim`` of an installed wheel, or the checkout.
    """
    package = Path(__file__).resolve().parent
    installed = package / '.mim'
    return installed if installed.is_dir() else package.parent


def require_own_version(script: str | None) -> None:
    """Raise a UserError if a script of a checkout imports another version of the package.

    Args:
        script: Path of the script, or None.
    """
    checkout = Path(script or os.devnull).resolve().parent.parent
    file = checkout / 'mmgcvit' / 'version.py'
    if not file.is_file():
        return
    found = re.search("'(.*)'", file.read_text(encoding='utf-8'))
    if found and found[1] != __version__:
        raise UserError(
            f'{script} has version {found[1]}, but imports version {__version__} of mmgcvit from '
            f'{Path(__file__).parent}: use the command mmgcvit, which runs the tools of the '
            f'installed package, or run pip install --editable {checkout}'
        )


def install_command() -> str:
    """Return how to install the libraries of OpenMMLab, without overwriting installed ones."""
    names = {distribution.metadata['Name'] for distribution in importlib.metadata.distributions()}
    place, package = 'in a checkout of mmgcvit, ', '.'
    if resources().name == '.mim':
        place, package = '', 'mmgcvit'
    if 'mmcv' in names:
        return f"{place}run pip install '{package}[openmmlab-compiled]'"
    if any(str(name).startswith('onedl-') for name in names):
        return f"{place}run pip install '{package}[onedl]'"
    return f"{place}run pip install '{package}[openmmlab]' (or '{package}[onedl]', never both)"


def missing_library(error: BaseException) -> str | None:
    """Return the remedy for a module that is not installed and that an extra brings, or None."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in OPENMMLAB:
        return None
    return (
        f'{error.name} is not installed in the Python environment {sys.prefix}: {install_command()}'
    )


def config_path(name: str) -> str:
    """Return the path of a config that comes with the package.

    A config that inherits from it, for any tool of mmdet, mmseg or mmpretrain::

        _base_ = __import__('mmgcvit').config_path('detection/cascade_gcvit_s.py')

    Args:
        name: Path in ``configs``, such as ``'detection/cascade_gcvit_s.py'``.

    Raises:
        UserError: If there is no such config.
    """
    names = config_names()
    if name not in names:
        raise UserError(
            f'mmgcvit has no config {name}{did_you_mean(name, names)}: use the name of a file in '
            f'{resources() / "configs"}'
        )
    return str(resources() / 'configs' / name)


def config_names() -> list[str]:
    """Return the names of the configs that come with the package."""
    configs = resources() / 'configs'
    return sorted(path.relative_to(configs).as_posix() for path in configs.rglob('*.py'))
