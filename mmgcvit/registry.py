"""This package's registries, children of mmengine's.

For a config with ``type='mmgcvit....'``, mmengine automatically imports ``mmgcvit.registry`` and
the locations listed here. Configs need no ``custom_imports``.
"""

from collections.abc import Mapping
from typing import Any

from .installed import with_pip

try:
    # from either distribution: mmengine or onedl-mmengine
    from mmengine import registry as mmengine_registry
    from mmengine.registry import Registry, init_default_scope
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise ModuleNotFoundError(
        with_pip(
            'This part of mmgcvit requires mmengine, which is not installed. For detectors, '
            'segmentors and classifiers, in a checkout of mmgcvit, run `pip install '
            "'.[openmmlab]'` or `pip install '.[onedl]'`. Do not install both distributions in one "
            'environment. The backbone (`from mmgcvit import GCViT`) and mmgcvit.weights do not '
            'need mmengine.'
        ),
        name='mmengine',
    ) from error

MODELS = Registry(
    'model', parent=mmengine_registry.MODELS, scope='mmgcvit', locations=['mmgcvit.models']
)
DATASETS = Registry(
    'dataset',
    parent=mmengine_registry.DATASETS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.rehearsal.samples'],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=mmengine_registry.DATA_SAMPLERS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.rehearsal.samples'],
)
FUNCTIONS = Registry(
    'function',
    parent=mmengine_registry.FUNCTIONS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.fsdp'],
)
HOOKS = Registry(
    'hook',
    parent=mmengine_registry.HOOKS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.hooks', 'mmgcvit.visualization'],
)
METRICS = Registry(
    'metric', parent=mmengine_registry.METRICS, scope='mmgcvit', locations=['mmgcvit.evaluation']
)
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=mmengine_registry.OPTIM_WRAPPERS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.optimizers'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.optimizers'],
)
RUNNERS = Registry(
    'runner',
    parent=mmengine_registry.RUNNERS,
    scope='mmgcvit',
    locations=['mmgcvit.engine.brief_runner'],
)
STRATEGIES = Registry(
    'strategy',
    parent=mmengine_registry.STRATEGIES,
    scope='mmgcvit',
    locations=['mmgcvit.engine.fsdp'],
)
TRANSFORMS = Registry(
    'transform',
    parent=mmengine_registry.TRANSFORMS,
    scope='mmgcvit',
    locations=['mmgcvit.datasets.loading'],
)
VISBACKENDS = Registry(
    'vis_backend',
    parent=mmengine_registry.VISBACKENDS,
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
