"""What stands for the classes and functions that weights files name besides tensors.

NVIDIA's and mmengine's files name some beside the weights. The real ones call what the file tells
them to, or take memory for numbers of theirs; those here only keep plain values, of which
:func:`revive` makes NumPy's arrays and mmengine's HistoryBuffers.
"""

import functools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer


class _State:
    """Keeps the state that a pickle gives it, whatever that is."""

    _state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.__dict__['_state'] = state


class _History(_State):
    """Of mmengine's HistoryBuffer, whose own state setter calls what the state holds."""


class Namespace:
    """Of argparse's: attributes alone."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})


class _Dtype(_State):
    """Of NumPy's, which believes a file that says that bytes of it are pointers."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        self.code = code

    def revive(self) -> np.dtype:
        order = self._state[1] if isinstance(self._state, tuple) and len(self._state) > 1 else '='
        if not re.fullmatch(r'[biufcSU]\d{1,4}', str(self.code)) or order not in tuple('<>=|'):
            raise ValueError(f'NumPy type {str(self.code)[:20]!r} is not one of plain numbers')
        return np.dtype(self.code).newbyteorder(order)


class _Array(_State):
    """Of NumPy's arrays: sizes, type and bytes."""

    def revive(self) -> np.ndarray:
        _, shape, kind, by_columns, content = self._state
        array = np.frombuffer(_bytes(content), kind.revive())
        return array.reshape(shape, order='F' if by_columns else 'C').copy()


class _Scalar:
    """Of NumPy's numbers: type and bytes."""

    def __init__(self, kind: _Dtype, content: Any = b'') -> None:
        self.kind, self.content = kind, content

    def revive(self) -> np.generic:
        return np.frombuffer(_bytes(self.content), self.kind.revive())[0]


def _bytes(content: Any) -> bytes:
    # what Python 2 wrote is text here
    return content.encode('latin1') if isinstance(content, str) else content


def _nothing(*_: Any) -> None:
    """Of getattr, which reaches any code from any class; files name it for what is rebuilt."""


def _named(target: Callable, path: str) -> Callable:
    """Make a class or function that goes by another's name, by which torch.load finds it."""
    module, name = path.rsplit('.', 1)
    if isinstance(target, type):
        return type(name, (target,), {'__module__': module})

    def call(*args: Any) -> Any:
        return target(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


@functools.cache
def allowed_globals() -> dict[str, Callable]:
    """Return what a file may name besides what torch itself reads, by the name in the file."""
    stand_ins = {
        'mmengine.logging.history_buffer.HistoryBuffer': _History,
        'argparse.Namespace': Namespace,
        'builtins.getattr': _nothing,
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _State,
    }
    for core in ('core', '_core'):  # NumPy 1's and NumPy 2's names
        stand_ins[f'numpy.{core}.multiarray._reconstruct'] = lambda *_: _Array()
        stand_ins[f'numpy.{core}.multiarray.scalar'] = _Scalar
    named = {path: _named(target, path) for path, target in stand_ins.items()}
    # torch.load lets the state be set of these alone, and this one is the result of a function
    return {**named, f'{__name__}._Array': _Array}


def modern_name(module: str, name: str) -> str:
    """Return the path of a global of a pickle, which may have Python 2's name.

    Python 3 still writes those in the pickle protocol of torch.save.
    """
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def revive(content: Any) -> Any:
    """Return what was read with real arrays and HistoryBuffers, built from plain values.

    Raises:
        ValueError: If the values of one are not plain.
    """
    return _revive(content, {})


def _revive(value: Any, done: dict[int, Any]) -> Any:
    # a value can be in many places, or in itself
    if id(value) in done:
        return done[id(value)]
    new = value
    if isinstance(value, _Dtype | _Array | _Scalar):
        new = value.revive()
    elif isinstance(value, _History):
        new = _revive_history(value._state, done)
    done[id(value)] = new
    if isinstance(value, Namespace):
        _revive_items(vars(value), done)
    elif type(value) in (dict, OrderedDict):
        _revive_items(value, done)
    elif type(value) is list:
        value[:] = (_revive(item, done) for item in value)
    elif type(value) is tuple:
        new = done[id(value)] = tuple(_revive(item, done) for item in value)
    return new


def _revive_items(items: dict, done: dict[int, Any]) -> None:
    for key, item in items.items():
        items[key] = _revive(item, done)


def _revive_history(state: Any, done: dict[int, Any]) -> HistoryBuffer:
    values, counts = (_revive(state[key], done) for key in ('_log_history', '_count_history'))
    for numbers in (values, counts):
        plain = (
            isinstance(numbers, np.ndarray) and numbers.ndim == 1 and numbers.dtype.kind in 'biuf'
        )
        if not plain and not (
            isinstance(numbers, list) and all(isinstance(n, int | float) for n in numbers)
        ):
            raise ValueError('a history of a training that is no row of numbers')
    length = state.get('max_length', 1_000_000)
    return HistoryBuffer(np.asarray(values, float), np.asarray(counts, float), int(length))
