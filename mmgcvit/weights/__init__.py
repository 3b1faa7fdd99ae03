"""Reading weights: safe files, other layouts' names, resized position bias tables.

Nothing in a weights file is executed, whatever the file holds.
"""

from .errors import WeightsError
from .export import export_weights
from .files import fetch, read_checkpoint, register_checkpoint_loaders
from .layouts import from_nvidia, to_nvidia
from .pretrained import LoadReport, load_pretrained, load_weights
from .tables import resize_bias_table

__all__ = [
    'LoadReport',
    'WeightsError',
    'export_weights',
    'fetch',
    'from_nvidia',
    'load_pretrained',
    'load_weights',
    'read_checkpoint',
    'register_checkpoint_loaders',
    'resize_bias_table',
    'to_nvidia',
]
