"""Checkpoints of trainings made into files to give away."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_atomically
from .errors import WeightsError
from .reading import read_checkpoint
from .sources import fetch


def publish_model(checkpoint: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write a file of a checkpoint's weights and what is known about them, of plain values alone.

    A training's checkpoint also holds the optimizer's state and a history of the losses. The latter
    names a class of mmengine, for which ``torch.load`` refuses such a file since torch 2.6.

    Args:
        checkpoint: Path or URL; it is read without executing anything that it holds.
        out: The file to write, to whose name the first 8 digits of its SHA-256 are added, by which
            torch.hub checks downloads: ``weights.pth`` becomes ``weights-1a2b3c4d.pth``. It has the
            checkpoint's ``state_dict`` and ``meta``, where mmdet and mmseg look for the names of
            the classes.

    Returns:
        The file written.

    Raises:
        WeightsError: If the checkpoint cannot be had or read, or has no ``state_dict``.
    """
    content = read_checkpoint(fetch(checkpoint))
    if not isinstance(content, dict) or not isinstance(content.get('state_dict'), dict):
        raise WeightsError(
            f'{checkpoint} has no state_dict: give a checkpoint that a training has written'
        )
    kept = {'meta': plain(content.get('meta', {})), 'state_dict': content['state_dict']}
    file = io.BytesIO()
    torch.save(kept, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    out = Path(out).expanduser()
    return write_atomically(out.with_name(f'{out.stem}-{digest}{out.suffix}'), file.getvalue())


def plain(value: Any) -> Any:
    """Return ``value`` with lists and numbers for NumPy's, which torch.load refuses as well."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value
