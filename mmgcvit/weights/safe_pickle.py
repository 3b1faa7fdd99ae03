"""Allow-list for unpickling, with inert stand-ins for the classes that weights files refer to.

The files of NVIDIA and mmengine refer to classes in addition to tensors. The real classes would
call functions that the file chooses, or trust the sizes in it. The stand-ins only store plain
values. :func:`revive` builds NumPy arrays and mmengine's HistoryBuffers from them.

torch 2.5 and later read files with ``weights_only=True`` and these stand-ins. Earlier versions do
not accept additional classes in this mode. They use this module as the ``pickle_module`` of
torch.load.
"""

import functools
import pickle
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from ..optional_mmengine import HistoryBuffer

__all__ = ['Unpickler', 'inspect', 'load', 'revive', 'stand_ins']


class _State:
    """Stores the state from a pickle without using it."""

    _state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.__dict__['_state'] = state


class _History(_State):
    """Stand-in for mmengine's HistoryBuffer, whose ``__setstate__`` would call into the state."""


class Namespace:
    """Stand-in for argparse.Namespace: only attributes."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})


class _Dtype(_State):
    """Stand-in for NumPy's dtype, which would trust a file that declares bytes as pointers."""

    def __init__(self, code: Any = None, align: Any = False, copy: Any = False) -> None:
        self.code = code

    def revive(self) -> np.dtype:
        order = self._state[1] if isinstance(self._state, tuple) and len(self._state) > 1 else '='
        if not re.fullmatch(r'[biufcSU]\d{1,4}', str(self.code)) or order not in tuple('<>=|'):
            raise ValueError(f'the NumPy dtype {str(self.code)[:20]!r} is not a plain number type')
        return np.dtype(self.code).newbyteorder(order)


class _Array(_State):
    """Stand-in for NumPy arrays: shape, dtype and bytes."""

    def revive(self) -> np.ndarray:
        _, shape, kind, by_columns, content = self._state
        array = np.frombuffer(_bytes(content), kind.revive())
        return array.reshape(shape, order='F' if by_columns else 'C').copy()


class _Scalar:
    """Stand-in for NumPy scalars: dtype and bytes."""

    def __init__(self, kind: _Dtype, content: Any = b'') -> None:
        self.kind, self.content = kind, content

    def revive(self) -> np.generic:
        return np.frombuffer(_bytes(self.content), self.kind.revive())[0]


def _bytes(content: Any) -> bytes:
    # Python 2 pickled bytes as text
    return content.encode('latin1') if isinstance(content, str) else content


def _nothing(*_: Any) -> None:
    """Stand-in for getattr, which could reach arbitrary code.

    Published files refer to it only for HistoryBuffer.
    """


def _named(target: Callable, path: str) -> Callable:
    """Return a class or function that torch.load identifies by the given path."""
    module, name = path.rsplit('.', 1)
    if isinstance(target, type):
        return type(name, (target,), {'__module__': module})

    def call(*args: Any) -> Any:
        return target(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


@functools.cache
def stand_ins() -> dict[str, Callable]:
    """Return the stand-ins by the path in the file. torch itself does not allow these paths."""
    targets: dict[str, Callable] = {
        'mmengine.logging.history_buffer.HistoryBuffer': _History,
        'argparse.Namespace': Namespace,
        'builtins.getattr': _nothing,
        'numpy.dtype': _Dtype,
        'numpy.ndarray': _State,
    }
    for core in ('core', '_core'):  # NumPy 1 and NumPy 2
        targets[f'numpy.{core}.multiarray._reconstruct'] = lambda *_: _Array()
        targets[f'numpy.{core}.multiarray.scalar'] = _Scalar
    named = {path: _named(target, path) for path, target in targets.items()}
    # _reconstruct returns an _Array, and torch.load sets the state only of listed classes
    return {**named, f'{__name__}._Array': _Array}


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Stand-in for _codecs.encode. Protocol 2, which torch.save uses, stores bytes with it."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError('it has bytes in an encoding other than latin1')
    return text.encode('latin1')


def _rebuild_from_type(function: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    """Stand-in for torch's function for tensors with attributes, which calls its first argument.

    The attributes are skipped.
    """
    if function not in (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter):
        raise pickle.UnpicklingError('it has a tensor that is not built by torch')
    return function(*arguments)


# These have precedence over torch's own list, whose entries differ between versions.
_PLAIN = {
    '_codecs.encode': _encode,
    'builtins.bytearray': None,  # bytearray(n) allocates n bytes
    'builtins.complex': complex,
    'builtins.frozenset': frozenset,
    'builtins.set': set,
    'collections.Counter': Counter,  # in MultiStepLR
    'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
    'torch.device': torch.device,
}


def _find(path: str) -> Any:
    """Return the object that replaces a global, or None if it is not allowed."""
    for known in (_PLAIN, stand_ins(), _get_allowed_globals()):
        if path in known:
            return known[path]
    return _of_program(path)


def _of_program(path: str) -> Any:
    """Return a class that was passed to torch.serialization.add_safe_globals, or None."""
    if not hasattr(torch.serialization, 'get_safe_globals'):
        return None
    for each in torch.serialization.get_safe_globals():
        target, *name = each if isinstance(each, tuple) else (each,)
        if path == (name[0] if name else f'{target.__module__}.{target.__qualname__}'):
            return target
    return None


def _modern_name(module: str, name: str) -> str:
    """Return the Python 3 path of a global. The protocol of torch.save stores Python 2's."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f'{module}.{name}'


_GLOBAL = object()


def inspect(file: IO[bytes]) -> list[str]:
    """Return the paths of globals that are not allowed in one pickle, without building objects.

    This function also runs before torch's restricted loading, which has three problems. It stops at
    the first global that is not allowed, it accepts a bytearray of any size, and its errors contain
    the text of the object that a file calls. For a small crafted list, this text fills the memory.
    Therefore all globals are collected here, and calls of anything else are rejected.

    Raises:
        pickle.UnpicklingError: If the pickle calls an object that is not a global.
        Exception: Any other exception that a damaged pickle causes.
    """
    refused: list[str] = []
    # for each value: the text of a string, _GLOBAL for a global, None for other values
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    try:
        argument: Any  # of the type that its opcode has
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == 'MARK':
                below.append(stack)
                stack = []
            elif name.endswith('PUT'):
                memo[argument] = stack[-1]
            elif name == 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            elif name.endswith('GET'):
                stack.append(memo[argument])
            elif name in ('GLOBAL', 'STACK_GLOBAL'):
                if name == 'GLOBAL':
                    module, _, attribute = argument.partition(' ')
                else:
                    attribute, module = stack.pop(), stack.pop()
                path = _modern_name(module, attribute)
                if _find(path) is None:
                    refused.append(path)
                stack.append(_GLOBAL)
            else:
                if name in ('REDUCE', 'NEWOBJ') and stack[-2] is not _GLOBAL:
                    raise pickle.UnpicklingError(
                        'it calls an object that is not a class or function'
                    )
                taken = opcode.stack_before
                if pickletools.markobject in taken:
                    stack = below.pop()
                    taken = taken[: taken.index(pickletools.markobject)]
                for _ in taken:
                    stack.pop()
                text = argument if isinstance(argument, str) else None
                stack.extend(text for _ in opcode.stack_after)
    except Exception:
        if not refused:
            raise
    return refused


# Python's implementation of pickle, because the one in C cannot be overridden per opcode.
class Unpickler(pickle._Unpickler):
    """Unpickler that only loads allowed globals, and only calls or modifies allowed objects."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # by id; the values keep the objects alive, so that ids stay unique
        self._found: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global.

        Raises:
            pickle.UnpicklingError: If the global is not allowed.
        """
        found = _find(_modern_name(module, name))
        if found is None:
            raise pickle.UnpicklingError('it refers to a class or function that is not allowed')
        self._found[id(found)] = found
        return found

    def load_reduce(self) -> None:
        """Call a function. The function and its arguments are on the stack."""
        self._require_found(self.stack[-2])
        super().load_reduce()  # type: ignore[misc]  # unknown to typeshed

    def load_newobj(self) -> None:
        """Create an instance of a class. The class and its arguments are on the stack."""
        self._require_found(self.stack[-2])
        super().load_newobj()  # type: ignore[misc]  # unknown to typeshed

    def load_build(self) -> None:
        """Set the state of an object."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind is torch.Tensor:
            target.set_(*state)
        elif kind is torch.nn.Parameter or kind in stand_ins().values():
            target.__setstate__(state)
        elif kind in (OrderedDict, Counter):
            target.__dict__.update(state)
        else:
            raise pickle.UnpicklingError('it has state for an object that does not support it')

    # opcodes that are not in this table are rejected
    for opcode in (
        pickle.OBJ,
        pickle.INST,
        pickle.NEWOBJ_EX,
        pickle.EXT1,
        pickle.EXT2,
        pickle.EXT4,
    ):
        del dispatch[opcode[0]]
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    del opcode

    def _require_found(self, target: Any) -> None:
        # the message omits the target, because the text of a crafted list fills the memory
        if id(target) not in self._found:
            raise pickle.UnpicklingError('it calls an object that is not a class or function')


def load(file: IO[bytes], **kwargs: Any) -> Any:
    """Read one pickle from a file."""
    return Unpickler(file, **kwargs).load()


def revive(content: Any) -> Any:
    """Replace stand-ins with NumPy arrays and HistoryBuffers that are built from their values.

    Raises:
        ValueError: If the values of a stand-in are not plain numbers.
    """
    return _revive(content, {})


def _revive(value: Any, done: dict[int, Any]) -> Any:
    # values can be shared or contain themselves
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
            raise ValueError('it has a HistoryBuffer whose values are not numbers')
    length = state.get('max_length', 1_000_000)
    return HistoryBuffer(np.asarray(values, float), np.asarray(counts, float), int(length))
