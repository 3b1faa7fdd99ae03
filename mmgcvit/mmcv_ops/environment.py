"""Where mmcv's operators come from in this environment, and what runs of them."""

import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UserError
from .site._mmgcvit_mmcv_ops import enable

DISTRIBUTIONS = ('mmcv', 'mmcv-lite', 'onedl-mmcv', 'mmcv-full')
INSTALL = "from a checkout of mmgcvit: pip install '.[openmmlab]' (or '.[onedl]', never both)"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Operators:
    """Where mmcv's operators come from.

    Attributes:
        mmcv: Name and version of the installed distribution, such as ``mmcv-lite 2.1.0``.
        compiled: Whether they are mmcv's own.
        file: The module ``mmcv._ext``.
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
    """Return the installed distributions of mmcv with their versions; more than one is a fault."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def require_operators() -> Operators:
    """Import mmcv's operators, which are torchvision's where there are no compiled ones.

    Raises:
        UserError: If mmcv is missing, broken, or compiled for another PyTorch.
    """
    enable()
    mmcv = ' and '.join(f'{name} {version}' for name, version in installed_mmcv().items())
    try:
        import mmcv as package
    except ModuleNotFoundError as error:
        if error.name != 'mmcv':
            raise UserError(_broken(mmcv, error)) from error
        raise UserError(f'mmcv is not installed: {INSTALL}') from error
    except Exception as error:
        raise UserError(_broken(mmcv, error)) from error
    if package.__file__ is None:  # an empty folder, or what an uninstallation has left
        raise UserError(
            f'mmcv at {next(iter(package.__path__))} is a folder without mmcv in it: remove the '
            f'folder, then {INSTALL}'
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
    for library in ('mmdet', 'mmseg'):  # which refuse versions of mmcv when they are imported
        try:
            importlib.import_module(library)
        except AssertionError as error:
            raise UserError(
                f'{library} refuses {mmcv} ({_line(error)}): install a version that it takes, for '
                "example pip install --no-deps 'mmcv-lite>=2.1,<2.2'"
            ) from error
        except Exception:
            continue  # it is not installed, or fails where it is used
    file = Path(extension.__file__)
    return Operators(mmcv, file.parent != FOLDER, file)


def _no_extension(mmcv: str, error: Exception) -> str:
    """Return why ``mmcv._ext`` cannot be imported: mmcv's own, or the one here."""
    spec = importlib.util.find_spec('mmcv._ext')
    if spec is not None and Path(spec.origin).parent != FOLDER:
        return (
            f'the compiled operators of {mmcv} cannot be loaded ({_line(error)}); most often they '
            f'were compiled for another PyTorch than the installed {torch.__version__}: build or '
            'install mmcv for this one, or replace it by mmcv-lite, which needs no compiler (pip '
            'uninstall mmcv, then pip install mmcv-lite==2.1.0)'
        )
    return (
        f"torchvision, which computes mmcv's operators here, cannot be used ({_line(error)}): "
        f'install the torchvision that belongs to torch {torch.__version__}, from where torch came'
    )


def _broken(mmcv: str, error: Exception) -> str:
    return (
        f'{mmcv or "mmcv"} cannot be imported ({_line(error)}): files are missing or of another '
        'version; install it again (pip install --force-reinstall --no-deps '
        f'{(mmcv or "mmcv-lite 2.1.0").split(" and ")[0].replace(" ", "==")})'
    )


def _line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


@functools.cache
def operator_failure(device: str, dtype: torch.dtype) -> str | None:
    """Run NMS and RoIAlign once, and return why they do not work on a device in a type, or None.

    Raises:
        RuntimeError: If the device itself does not work: its memory is full, for example.
    """
    from mmcv.ops import nms, roi_align

    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]]
    # outside: a device that does nothing at all is not the operators' failure
    boxes = torch.tensor(boxes, device=device, dtype=dtype) + 0
    try:
        scores = torch.tensor([0.5, 0.75, 0.25], device=device, dtype=dtype)
        kept = nms(boxes, scores, iou_threshold=0.5)[1].tolist()
        features = torch.ones(1, 1, 4, 4, device=device, dtype=dtype, requires_grad=True)
        region = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]], device=device, dtype=dtype)
        pooled = roi_align(features, region, (2, 2), 1.0, 2, 'avg', True)
        pooled.sum().backward()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        return _line(error)
    results = kept, pooled.flatten().tolist(), features.grad.sum().item()
    if results != ([1, 2], [1.0] * 4, 4.0):
        return f'wrong results: boxes {results[0]}, features {results[1]}, gradient {results[2]}'
    return None
