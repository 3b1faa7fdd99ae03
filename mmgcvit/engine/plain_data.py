"""Batches as plain data, which files can hold and :func:`read_checkpoint` can read.

Data samples, boxes and masks of the libraries become dicts of tensors, arrays, numbers and text.
:func:`from_plain` builds only classes of the table below from them.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..errors import UserError, describe

_CLASS = '__class__'
_ARRAY = 'numpy.ndarray'
_ELEMENTS = (
    'mmdet.structures.DetDataSample',
    'mmdet.structures.ReIDDataSample',
    'mmdet.structures.TrackDataSample',
    'mmseg.structures.SegDataSample',
    'mmpretrain.structures.DataSample',
    'mmpretrain.structures.MultiTaskDataSample',
    'mmengine.structures.InstanceData',
    'mmengine.structures.PixelData',
    'mmengine.structures.LabelData',
    'mmengine.structures.BaseDataElement',
)
# attributes that are also the arguments of the class
_OTHERS = {
    'mmdet.structures.mask.BitmapMasks': ('masks', 'height', 'width'),
    'mmdet.structures.mask.PolygonMasks': ('masks', 'height', 'width'),
    'mmdet.structures.bbox.HorizontalBoxes': ('tensor',),
}


def to_plain(value: Any) -> Any:
    """Return a value as dicts, lists, tuples, tensors on the CPU, arrays, numbers and text.

    A subclass of a known class becomes the known class. Values of unknown classes become their
    text.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Tensor):
        # a copy, because a file would hold the complete storage of a view
        return value.detach().to('cpu', copy=True)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        # a tensor, because pickles of empty arrays refer to more than the reader allows
        return {_CLASS: _ARRAY, 'tensor': torch.as_tensor(value).clone()}
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, int | str) else str(key): to_plain(item)
            for key, item in value.items()
        }
    if isinstance(value, tuple):  # a named tuple or a torch.Size too
        return tuple(to_plain(item) for item in value)
    if isinstance(value, list | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix('torch.')
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    if isinstance(value, PurePath | torch.device):
        return str(value)
    return _object_to_plain(value)


def _object_to_plain(value: Any) -> Any:
    path = next((path for path in (*_ELEMENTS, *_OTHERS) if _is_instance(value, path)), None)
    if path in _OTHERS:
        return {
            _CLASS: path,
            **{name: to_plain(getattr(value, name)) for name in _OTHERS[path]},
        }
    if path is not None:
        return {
            _CLASS: path,
            'metainfo': _public(value.metainfo_items()),
            'data': _public(value.items()),
        }
    return f'{type(value).__module__}.{type(value).__qualname__}: {str(value)[:1000]}'


def _public(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: to_plain(item) for name, item in fields if not name.startswith('_')}


def _is_instance(value: Any, path: str) -> bool:
    package, name = path.partition('.')[0], path.rpartition('.')[2]
    return any(
        base.__name__ == name and base.__module__.partition('.')[0] == package
        for base in type(value).__mro__
    )


def from_plain(value: Any) -> Any:
    """Build the objects again of which :func:`to_plain` made plain data.

    Raises:
        UserError: If the data names another class, or the class does not accept the data.
    """
    try:
        return _from_plain(value)
    except UserError:
        raise
    except Exception as error:  # data of unlimited depth, for example
        raise _damaged('a batch', error) from error


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _CLASS in value:
            return _build(value)
        return {key: _from_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_from_plain(item) for item in value)
    return value


def _build(plain: Mapping[str, Any]) -> Any:
    path = plain[_CLASS]
    if not isinstance(path, str) or path not in (_ARRAY, *_ELEMENTS, *_OTHERS):
        raise UserError(
            f'the data has an object of the class {str(path)[:100]!r}, which is not built: '
            f'allowed are {", ".join((*_ELEMENTS, *_OTHERS))}; write the file again'
        )
    try:
        if path == _ARRAY:
            return plain['tensor'].numpy()
        cls = _import(path)
        if path in _OTHERS:
            return cls(*(_from_plain(plain[name]) for name in _OTHERS[path]))
        element = cls(metainfo=_named(plain['metainfo']))
        for name, item in _named(plain['data']).items():
            setattr(element, name, item)
        return element
    except UserError:
        raise
    except Exception as error:  # the classes check their data by assertions
        raise _damaged(path, error) from error


def _damaged(what: str, error: Exception) -> UserError:
    return UserError(
        f'the data of {what} is damaged ({describe(error, 200)}): write the file again'
    )


def _named(plain: Mapping[str, Any]) -> dict[str, Any]:
    if any(name.startswith('_') for name in plain):
        raise ValueError('names of fields must not begin with an underscore')
    return {name: _from_plain(item) for name, item in plain.items()}


def _import(path: str) -> Callable[..., BaseDataElement]:
    module, _, name = path.rpartition('.')
    return getattr(importlib.import_module(module), name)
