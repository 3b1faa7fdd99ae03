"""mmcv's operators, computed by torchvision where mmcv was installed without compiled ones.

``mmcv-lite`` and an mmcv that pip built on its own hold all of mmcv's Python and lack one module,
``mmcv._ext``. The one here takes its place: pip installs a finder that Python asks when nothing
else has that module, so a compiled mmcv is used as it is. Importing this package changes nothing.
"""

from .environment import Operators, operator_failure, require_operators
from .site._mmgcvit_mmcv_ops import enable

__all__ = ['Operators', 'enable', 'operator_failure', 'require_operators']
