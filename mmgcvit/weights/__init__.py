"""Reading, fitting and writing weights.

A source is fetched to a local file (:mod:`.sources`) and read without executing any code in it
(:mod:`.reading`, :mod:`.safe_pickle`). The table of layouts (:mod:`.layouts`) determines how its
tensors are sorted into a :class:`Checkpoint` (:mod:`.checkpoint`). The checkpoint is then fitted to
a model (:mod:`.fit`) or written to another file (:mod:`.export`).
"""

from .checkpoint import Checkpoint, open_checkpoint
from .export import convert_weights, publish_model
from .fit import Fit, fit, load_pretrained
from .reading import read_checkpoint, register_checkpoint_loaders
from .sources import fetch

__all__ = [
    'Checkpoint',
    'Fit',
    'convert_weights',
    'fetch',
    'fit',
    'load_pretrained',
    'open_checkpoint',
    'publish_model',
    'read_checkpoint',
    'register_checkpoint_loaders',
]
