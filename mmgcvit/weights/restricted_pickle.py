"""The part of the pickle module that torch.load uses, for torch before 2.5.

Those versions cannot read with ``weights_only`` what names a class that they do not know. This
module, as their ``pickle_module``, calls and builds nothing but what is allowed here.
"""

import pickle
from collections import Counter, OrderedDict
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from .stand_ins import allowed_globals, modern_name

__all__ = ['Unpickler', 'load']


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Stand for _codecs.encode, by which Python writes bytes in the protocol of torch.save."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'the encoding {encoding!r} is not allowed')
    return text.encode('latin1')


def _globals() -> dict[str, Any]:
    # after torch's own: some versions allow the real _codecs.encode
    plain = {f'builtins.{kind.__name__}': kind for kind in (bytearray, complex, frozenset, set)}
    return {**_get_allowed_globals(), **plain, '_codecs.encode': _encode, **allowed_globals()}


# pickle's own implementation in Python, since the one in C lets nobody between an opcode and what
# it does
class Unpickler(pickle._Unpickler):
    """Reads pickles; what they name, call or set must be allowed."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._globals = _globals()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global.

        Raises:
            pickle.UnpicklingError: If it is not allowed.
        """
        path = modern_name(module, name)
        if path not in self._globals:
            raise pickle.UnpicklingError(f'GLOBAL {path} is not allowed')
        return self._globals[path]

    def load_reduce(self) -> None:
        """Call a function with arguments, both from the stack."""
        self._require_allowed(self.stack[-2], 'called')
        super().load_reduce()

    def load_newobj(self) -> None:
        """Make an instance of a class, from the stack as its arguments."""
        self._require_allowed(self.stack[-2], 'instantiated')
        super().load_newobj()

    def load_build(self) -> None:
        """Set the state of an object."""
        state, target = self.stack.pop(), self.stack[-1]
        kind = type(target)
        if kind is torch.Tensor:
            target.set_(*state)
        elif kind is torch.nn.Parameter or issubclass(kind, np.ndarray | np.dtype):
            target.__setstate__(state)
        elif kind in (OrderedDict, Counter) or kind in allowed_globals().values():
            target.__dict__.update(state)
        else:
            raise pickle.UnpicklingError(f'the state of a {kind.__name__} may not be set')

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

    def _require_allowed(self, target: Any, purpose: str) -> None:
        if not any(target is allowed for allowed in self._globals.values()):
            raise pickle.UnpicklingError(f'{target!r} is {purpose}, which is not allowed')


def load(file: IO[bytes], **kwargs: Any) -> Any:
    """Read one pickle from a file."""
    return Unpickler(file, **kwargs).load()
