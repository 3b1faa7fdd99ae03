"""Reading weights: safe files, other layouts' names, resized position bias tables.

Nothing in a weights file is executed, whatever the file holds.
"""

from .contents import Contents, join_tensors, require_finite, sort_tensors, tensors_of
from .convert import DTYPES, Conversion, convert_weights
from .layouts import LAYOUTS, from_nvidia, from_timm, to_nvidia, to_timm
from .loaders import register_checkpoint_loaders
from .pretrained import LoadReport, adapt_network, load_pretrained, load_weights
from .publish import publish_model
from .reading import read_checkpoint
from .sizes import Sizes, infer_sizes
from .sources import fetch
from .tables import resize_bias_table

__all__ = [
    'DTYPES',
    'LAYOUTS',
    'Contents',
    'Conversion',
    'LoadReport',
    'Sizes',
    'adapt_network',
    'convert_weights',
    'fetch',
    'from_nvidia',
    'from_timm',
    'infer_sizes',
    'join_tensors',
    'load_pretrained',
    'load_weights',
    'publish_model',
    'read_checkpoint',
    'register_checkpoint_loaders',
    'require_finite',
    'resize_bias_table',
    'sort_tensors',
    'tensors_of',
    'to_nvidia',
    'to_timm',
]
