"""This package's registries, children of mmengine's.

mmengine imports ``mmgcvit.registry`` by itself when a config names a ``type='mmgcvit....'``, and
then the locations listed here, so that no ``custom_imports`` line is needed.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgcvit', locations=['mmgcvit.models'])
