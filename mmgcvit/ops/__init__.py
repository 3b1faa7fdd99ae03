"""Fast implementation of the network's operations.

Only this package depends on devices, autograd and graph modes. Its public API is listed here;
:mod:`mmgcvit.reference` implements the same network without it.
"""

from .attention import attention_probabilities, window_attention
from .graph_mode import fx_leaf
from .memory_format import prepare_images, prepare_parameters
from .position_bias import resize_bias_table, resize_bias_tables
from .recomputation import POLICIES as RECOMPUTE_POLICIES
from .recomputation import recompute
from .resize import resize_bicubic
from .windows import PaddedWindows, Region, Windows, project_padding, window_layout

__all__ = [
    'RECOMPUTE_POLICIES',
    'PaddedWindows',
    'Region',
    'Windows',
    'attention_probabilities',
    'fx_leaf',
    'prepare_images',
    'prepare_parameters',
    'project_padding',
    'recompute',
    'resize_bias_table',
    'resize_bias_tables',
    'resize_bicubic',
    'window_attention',
    'window_layout',
]
