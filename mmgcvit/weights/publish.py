"""Checkpoints of trainings made into files to give away."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..files import write_atomically
from .addresses import public_name
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
        UserError: If the checkpoint cannot be had or read, or has no ``state_dict``.
    """
    content = read_checkpoint(fetch(checkpoint))
    if not isinstance(content, dict) or not isinstance(content.get('state_dict'), dict):
        raise UserError(
            f'{public_name(str(checkpoint))} has no state_dict: give a checkpoint that a training '
            'has written'
        )
    kept = {'meta': plain(content.get('meta', {})), 'state_dict': content['state_dict']}
    file = io.BytesIO()
    torch.save(kept, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    out = Path(out).expanduser()
    return write_atomically(out.with_name(f'{out.stem}-{digest}{out.suffix}'), file.getvalue())


def plain(value: Any) -> Any:
    """Return a value with lists and numbers for NumPy's, without what torch.load refuses.

    Raises:
        UserError: If it is nested too deeply to be written.
    """
    try:
        return _plain(value, {})
    except RecursionError as error:
        raise UserError("the file's meta is nested too deeply to be written") from error


def _plain(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.Tensor
    ):
        return value
    if id(value) in done:  # a value can be in many places, or in itself
        return done[id(value)]
    if isinstance(value, dict):
        new = done[id(value)] = {}
        new.update((key, _plain(item, done)) for key, item in value.items())
        return new
    if isinstance(value, list):
        new = done[id(value)] = []
        new.extend(_plain(item, done) for item in value)
        return new
    if type(value) in (tuple, set, frozenset):
        done[id(value)] = None
        done[id(value)] = new = type(value)(_plain(item, done) for item in value)
        return new
    return None  # the stand-in for an object, of which nothing is known
