"""What stands for the classes and functions that weights files name besides tensors.

NVIDIA's and mmengine's files name some beside the weights. The real ones call what the file tells
them to; those here only keep plain values.
"""

import functools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer


def _stand_in(path: str) -> type:
    """Make an inert class that goes by the name of another: it only keeps what it is given."""
    module, name = path.rsplit('.', 1)
    return type(name, (), {'__module__': module})


def _renamed(function: Callable, path: str) -> Callable:
    """Make a function that goes by another name than the one that it calls."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__ = path.rsplit('.', 1)
    call.__qualname__ = call.__name__
    return call


# mmengine's own class calls functions that its pickled state names: crafted files run code so
_History = _stand_in('mmengine.logging.history_buffer.HistoryBuffer')


@functools.cache
def allowed_globals() -> dict[str, Any]:
    """Return what a file may name besides tensors and plain values, by the name in the file."""
    arrays, scalars = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
    allowed = [
        _History,
        _stand_in('argparse.Namespace'),
        # getattr reaches any code from any class; the files name it for what is rebuilt anyway
        _renamed(lambda *_: None, 'builtins.getattr'),
        # the same two functions go by NumPy 1's and NumPy 2's names
        *(
            _renamed(function, f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for name, function in (('_reconstruct', arrays), ('scalar', scalars))
        ),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in np.typecodes['All']},
    ]
    return {f'{each.__module__}.{each.__qualname__}': each for each in allowed}


def modern_name(module: str, name: str) -> str:
    """Return the path of a global of a pickle, which may have Python 2's name.

    Python 3 still writes those in the pickle protocol of torch.save.
    """
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


def revive(content: Any) -> Any:
    """Return what was read with real HistoryBuffers, built from plain numbers, for stand-ins."""
    return _revive(content, {})


def _revive(value: Any, done: dict[int, Any]) -> Any:
    # a value can be in many places, or in itself
    if id(value) in done:
        return done[id(value)]
    new = value
    if isinstance(value, _History):
        state = vars(value)
        log = np.asarray(state.get('_log_history', ()), dtype=float)
        count = np.asarray(state.get('_count_history', ()), dtype=float)
        new = HistoryBuffer(log, count, int(state.get('max_length', 1_000_000)))
    done[id(value)] = new
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            value[key] = _revive(item, done)
    elif type(value) is list:
        value[:] = (_revive(item, done) for item in value)
    elif type(value) is tuple:
        new = done[id(value)] = tuple(_revive(item, done) for item in value)
    return new
