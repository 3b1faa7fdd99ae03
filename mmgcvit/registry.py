"""This package's registries, children of mmengine's.

For a config with ``type='mmgcvit....'``, mmengine automatically imports ``mmgcvit.registry`` and
the locations listed here. Configs need no ``custom_imports``.
"""

from collections.abc import Mapping
from typing import Any

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry, init_default_scope


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope='mmgcvit', locations=list(locations))


MODELS = _child(mmengine_registry.MODELS, 'mmgcvit.models')
DATASETS = _child(mmengine_registry.DATASETS, 'mmgcvit.engine.rehearsal.samples')
DATA_SAMPLERS = _child(mmengine_registry.DATA_SAMPLERS, 'mmgcvit.engine.rehearsal.samples')
FUNCTIONS = _child(mmengine_registry.FUNCTIONS, 'mmgcvit.engine.fsdp')
HOOKS = _child(mmengine_registry.HOOKS, 'mmgcvit.engine.hooks', 'mmgcvit.visualization')
METRICS = _child(mmengine_registry.METRICS, 'mmgcvit.evaluation')
OPTIM_WRAPPERS = _child(mmengine_registry.OPTIM_WRAPPERS, 'mmgcvit.engine.optimizers')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS, 'mmgcvit.engine.optimizers'
)
RUNNERS = _child(mmengine_registry.RUNNERS, 'mmgcvit.engine.brief_runner')
STRATEGIES = _child(mmengine_registry.STRATEGIES, 'mmgcvit.engine.fsdp')
TRANSFORMS = _child(mmengine_registry.TRANSFORMS, 'mmgcvit.datasets.loading')
VISBACKENDS = _child(mmengine_registry.VISBACKENDS, 'mmgcvit.engine.loggers')


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
