"""Find out where mmcv's operators come from in this environment, and whether they work."""

import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError, describe
from ..installed import install_command
from .site._mmgcvit_mmcv_ops import enable

DISTRIBUTIONS = ('mmcv', 'mmcv-lite', 'onedl-mmcv', 'mmcv-full')
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Operators:
    """Origin of mmcv's operators.

    Attributes:
        mmcv: Name and version of the installed distribution, such as ``mmcv-lite 2.1.0``.
        compiled: Whether the operators are mmcv's own compiled ones.
        file: File of the module ``mmcv._ext``.
    """

    mmcv: str
    compiled: bool
    file: Path

    def __str__(self) -> str:
        if self.compiled:
            return f'compiled, from {self.mmcv}'
        import torchvision

        return f'torchvision {torchvision.__version__} ({self.mmcv} has no compiled operators)'


def installed_mmcv() -> dict[str, str]:
    """Return the installed distributions of mmcv with their versions.

    There should be at most one.
    """
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def require_operators() -> Operators:
    """Import mmcv's operators, or torchvision's if mmcv has no compiled ones.

    Raises:
        UserError: If mmcv is missing, broken, or compiled for another PyTorch version.
    """
    enable()
    mmcv = ' and '.join(f'{name} {version}' for name, version in installed_mmcv().items())
    try:
        import mmcv as package
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise UserError(_broken(mmcv, error)) from error
        raise UserError(f'mmcv is not installed: {install_command()}') from error
    except Exception as error:
        raise UserError(_broken(mmcv, error)) from error
    if package.__file__ is None:  # a namespace package: an empty folder, or leftover files
        raise UserError(
            f'mmcv is not installed, although there is a folder {next(iter(package.__path__))}: '
            f'remove the folder, then {install_command()}'
        )
    mmcv = mmcv or f'mmcv {package.__version__}'
    try:
        extension = importlib.import_module('mmcv._ext')
    except Exception as error:
        raise UserError(_no_extension(mmcv, error)) from error
    try:
        importlib.import_module('mmcv.ops')
    except Exception as error:
        raise UserError(_broken(mmcv, error)) from error
    for library in ('mmdet', 'mmseg'):  # their import fails for unsupported versions of mmcv
        try:
            importlib.import_module(library)
        except AssertionError as error:
            raise UserError(
                f'{library} does not support {mmcv} ({describe(error)}): install a supported '
                "version, for example pip install --no-deps 'mmcv-lite>=2.1,<2.2'"
            ) from error
        except Exception:
            continue  # not installed, or broken, which is reported where the library is used
    assert extension.__file__ is not None
    file = Path(extension.__file__)
    return Operators(mmcv, file.parent != FOLDER, file)


def _no_extension(mmcv: str, error: Exception) -> str:
    """Return why ``mmcv._ext`` cannot be imported, whether it is mmcv's or this package's."""
    spec = importlib.util.find_spec('mmcv._ext')
    if spec is not None and spec.origin is not None and Path(spec.origin).parent != FOLDER:
        return (
            f'the compiled operators of {mmcv} cannot be loaded ({describe(error)}). The usual '
            'cause is that they were compiled for another PyTorch version than the installed '
            f'{torch.__version__}: build or install mmcv for this version, or replace it with '
            'mmcv-lite, which does not need a compiler (pip uninstall mmcv, then pip install '
            'mmcv-lite==2.1.0)'
        )
    return (
        f"torchvision, which replaces mmcv's operators, cannot be imported ({describe(error)}): "
        f'install the torchvision version that matches torch {torch.__version__}, from the same '
        'source as torch'
    )


def _broken(mmcv: str, error: Exception) -> str:
    return (
        f'{mmcv or "mmcv"} cannot be imported ({describe(error)}): files are missing or from '
        'another version; reinstall it (pip install --force-reinstall --no-deps '
        f'{(mmcv or "mmcv-lite 2.1.0").split(" and ")[0].replace(" ", "==")})'
    )


@functools.cache
def operator_failure(device: str, dtype: torch.dtype) -> str | None:
    """Run NMS and RoIAlign once. Return why they fail for a device and dtype, None if they work.

    Raises:
        RuntimeError: If the device itself does not work, for example because its memory is full.
    """
    from mmcv.ops import nms, roi_align

    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]]
    # outside of the try block, since a failure of the device is not a failure of the operators
    boxes = torch.tensor(boxes, device=device, dtype=dtype) + 0
    try:
        scores = torch.tensor([0.5, 0.75, 0.25], device=device, dtype=dtype)
        indices = nms(boxes, scores, iou_threshold=0.5)[1].tolist()
        features = torch.ones(1, 1, 4, 4, device=device, dtype=dtype, requires_grad=True)
        region = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]], device=device, dtype=dtype)
        pooled = roi_align(features, region, (2, 2), 1.0, 2, 'avg', True)
        pooled.sum().backward()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        return describe(error)
    results = indices, pooled.flatten().tolist(), features.grad.sum().item()
    if results != ([1, 2], [1.0] * 4, 4.0):
        return f'wrong results: boxes {results[0]}, features {results[1]}, gradient {results[2]}'
    return None
