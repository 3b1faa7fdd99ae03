"""The hooks that keep watch over every run."""

from mmengine.config import Config

GUARDS = ('mmgcvit.BadLossHook', 'mmgcvit.CheckpointFitHook')


def add_guards(cfg: Config) -> None:
    """Add this package's watching hooks to a config; those that it has already are kept as set."""
    hooks = list(cfg.get('custom_hooks') or [])
    there = {hook.get('type') for hook in hooks}
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in GUARDS if name not in there)]
