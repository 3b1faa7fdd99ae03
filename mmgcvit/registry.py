"""This package's registries, children of mmengine's.

mmengine imports ``mmgcvit.registry`` by itself when a config names a ``type='mmgcvit....'``, and
then the locations listed here, so that no ``custom_imports`` line is needed.
"""

from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgcvit', locations=['mmgcvit.models'])
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='mmgcvit', locations=['mmgcvit.engine.fsdp']
)
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmgcvit', locations=['mmgcvit.engine'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmgcvit', locations=['mmgcvit.engine'])
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope='mmgcvit', locations=['mmgcvit.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.layer_decay'],
)
RUNNERS = Registry(
    'runner', parent=MMENGINE_RUNNERS, scope='mmgcvit', locations=['mmgcvit.engine.brief_runner']
)
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmgcvit', locations=['mmgcvit.engine.fsdp']
)
