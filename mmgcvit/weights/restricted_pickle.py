"""Reading pickles in which nothing but what is listed here may be named, called or set.

As a module this is what torch.load takes as ``pickle_module``. From torch 2.5 on that is not
needed, as ``weights_only`` can be given further classes. :func:`inspect` goes before either.
"""

import pickle
from collections import Counter, OrderedDict
from typing import IO, Any, ClassVar

import torch
from torch._weights_only_unpickler import _get_allowed_globals

from .stand_ins import allowed_globals, modern_name

__all__ = ['Unpickler', 'inspect', 'load']


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Stand for _codecs.encode, by which Python writes bytes in the protocol of torch.save."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError('an encoding other than latin1')
    return text.encode('latin1')


def _rebuild_from_type(function: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    """Stand for torch's function of tensors with attributes, which it calls what it is given for.

    The attributes are left out.
    """
    if function not in (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter):
        raise pickle.UnpicklingError('a tensor that is made by something else than torch')
    return function(*arguments)


# besides what torch's own list has in all versions from 2.1 on, in place of what that has
_PLAIN = {
    '_codecs.encode': _encode,
    'builtins.bytearray': None,  # which takes the memory that a number asks for
    'builtins.complex': complex,
    'builtins.frozenset': frozenset,
    'builtins.set': set,
    'collections.Counter': Counter,  # of schedules in steps
    'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
    'torch.device': torch.device,
}


def _find(path: str) -> Any:
    """Return what a file's global stands for, None if it may not be named."""
    for known in (_PLAIN, allowed_globals(), _get_allowed_globals()):
        if path in known:
            return known[path]
    return _own(path)


def _own(path: str) -> Any:
    """Return a class that the program has named to torch.serialization.add_safe_globals."""
    if not hasattr(torch.serialization, 'get_safe_globals'):
        return None
    for each in torch.serialization.get_safe_globals():
        target, *name = each if isinstance(each, tuple) else (each,)
        if path == (name[0] if name else f'{target.__module__}.{target.__qualname__}'):
            return target
    return None


# pickle's own implementation in Python, since the one in C lets nobody between an opcode and what
# it does
class Unpickler(pickle._Unpickler):
    """Reads pickles; what they name, call or set must be allowed."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # by their identity: they are kept alive here
        self._found: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global.

        Raises:
            pickle.UnpicklingError: If it is not allowed.
        """
        found = self.find(modern_name(module, name))
        if found is None:
            raise pickle.UnpicklingError('a class or function that is not allowed')
        self._found[id(found)] = found
        return found

    def find(self, path: str) -> Any:
        """Return what stands for a global, None if it is not allowed."""
        return _find(path)

    def load_reduce(self) -> None:
        """Call a function with arguments, both from the stack."""
        self._require_found(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        """Make an instance of a class, from the stack as its arguments."""
        self._require_found(self.stack[-2])
        super().load_newobj()

    def load_build(self) -> None:
        """Set the state of an object."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind is torch.Tensor:
            target.set_(*state)
        elif kind is torch.nn.Parameter or kind in allowed_globals().values():
            target.__setstate__(state)
        elif kind in (OrderedDict, Counter):
            target.__dict__.update(state)
        else:
            raise pickle.UnpicklingError('a state of what has none')

    # by opcode; what is not here is refused
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
        # no word of what it is: that of a crafted list fills the memory
        if id(target) not in self._found:
            raise pickle.UnpicklingError('a call of what is no class or function')


def load(file: IO[bytes], **kwargs: Any) -> Any:
    """Read one pickle from a file."""
    return Unpickler(file, **kwargs).load()


class _Result:
    """What a call gives in an inspection: it takes what is put into it, and keeps nothing."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def update(self, items: Any) -> None: ...


class _Named:
    """What any global of a file is in an inspection."""

    def __call__(self, *_: Any) -> _Result:
        return _Result()


class _Inspector(Unpickler):
    """Goes through a pickle and calls nothing."""

    dispatch: ClassVar = dict(Unpickler.dispatch)

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding='utf-8')
        self.refused: list[str] = []

    def find(self, path: str) -> Any:
        if _find(path) is None and path not in self.refused:
            self.refused.append(path)
        return _Named()

    def persistent_load(self, pid: Any) -> Any:
        return _Result()

    def load_build(self) -> None:
        self.stack.pop()

    dispatch[pickle.NEWOBJ[0]] = Unpickler.load_reduce
    dispatch[pickle.BUILD[0]] = load_build


def inspect(file: IO[bytes]) -> list[str]:
    """Go through one pickle without calling anything, and return what it may not name.

    Raises:
        pickle.UnpicklingError: If it calls what is not named, or has opcodes that are not allowed.
        Exception: Whatever a broken pickle leads to.
    """
    inspector = _Inspector(file)
    try:
        inspector.load()
    except Exception:
        if not inspector.refused:
            raise
    return inspector.refused
