"""Reading weights: safe files, other layouts' names, resized position bias tables.

Nothing in a weights file is executed, whatever the file holds.
"""

from .errors import WeightsError
from .files import fetch, read_checkpoint, register_checkpoint_loaders
from .layouts import from_nvidia, to_nvidia
from .pretrained import LoadReport, load_pretrained, load_weights
from .publish import publish_model
from .tables import resize_bias_table

__all__ = [
    'LoadReport',
    'WeightsError',
    'fetch',
    'from_nvidia',
    'load_pretrained',
    'load_weights',
    'publish_model',
    'read_checkpoint',
    'register_checkpoint_loaders',
    'resize_bias_table',
    'to_nvidia',
]
