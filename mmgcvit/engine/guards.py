"""The hooks that keep watch over every run."""

from mmengine.config import Config

from ..registry import HOOKS, class_of
from .hooks.bad_loss import BadLossHook
from .hooks.checkpoint_fit import CheckpointFitHook

GUARDS = (BadLossHook, CheckpointFitHook)


def add_guards(cfg: Config) -> None:
    """Add this package's watching hooks to a config; those that it has already are kept as set."""
    hooks = list(cfg.get('custom_hooks') or [])
    there = {class_of(hook, HOOKS) for hook in hooks}
    missing = [guard for guard in GUARDS if guard not in there]
    cfg.custom_hooks = [*hooks, *(dict(type=f'mmgcvit.{guard.__name__}') for guard in missing)]
