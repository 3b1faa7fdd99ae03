"""This package's registries, children of mmengine's.

For a config with ``type='mmgcvit....'``, mmengine automatically imports ``mmgcvit.registry`` and
the locations listed here. Configs need no ``custom_imports``.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry, init_default_scope

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgcvit', locations=['mmgcvit.models'])
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.rehearsal.samples'],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.rehearsal.samples'],
)
FUNCTIONS = Registry(
    'function', parent=MMENGINE_FUNCTIONS, scope='mmgcvit', locations=['mmgcvit.engine.fsdp']
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.hooks', 'mmgcvit.visualization'],
)
METRICS = Registry(
    'metric', parent=MMENGINE_METRICS, scope='mmgcvit', locations=['mmgcvit.evaluation']
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.optimizers'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.optimizers'],
)
RUNNERS = Registry(
    'runner', parent=MMENGINE_RUNNERS, scope='mmgcvit', locations=['mmgcvit.engine.brief_runner']
)
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmgcvit', locations=['mmgcvit.engine.fsdp']
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmgcvit',
    locations=['mmgcvit.datasets.loading'],
)
VISBACKENDS = Registry(
    'vis_backend',
    parent=MMENGINE_VISBACKENDS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.loggers'],
)


def set_default_scope(scope: str | None) -> None:
    """Set the scope in which names of types are looked up, as mmengine's Runner does.

    Args:
        scope: A config's ``default_scope``. None sets nothing: registries then find the components
            of their own library, on which configs rely whose types are classes.
    """
    if scope is not None:
        init_default_scope(scope)


def class_of(
    config: Mapping[str, Any] | str | type | None, registry: Registry, scope: str | None = None
) -> Any:
    """Return the class of a config's ``type``, or None if there is no such class.

    The type is a class, its name with or without a scope, or its import path.

    Args:
        config: Config with the key ``type``, or a type.
        registry: Registry to search.
        scope: Scope whose names need no prefix, such as a config's ``default_scope``.
    """
    kind = config.get('type') if isinstance(config, Mapping) else config
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as found:
        return found.get(kind)
