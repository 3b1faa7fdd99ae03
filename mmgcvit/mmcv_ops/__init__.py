"""Implementation of mmcv's operators with torchvision, for mmcv without compiled operators.

``mmcv-lite``, and an mmcv that pip built without operators, contain all of mmcv's Python code but
lack the module ``mmcv._ext``. The module in this package replaces it: pip installs a finder that
Python uses only if ``mmcv._ext`` is not found otherwise, so a compiled mmcv stays in use. Importing
this package has no side effects.
"""

from .environment import Operators, operator_failure, require_operators
from .site._mmgcvit_mmcv_ops import enable

__all__ = ['Operators', 'enable', 'operator_failure', 'require_operators']
