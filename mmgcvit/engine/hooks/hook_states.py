"""States of hooks in checkpoints."""

import logging
from collections.abc import Iterable

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

# their hooks take their state from the iteration, the model or the config
_LIBRARIES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmgcvit')


def states_of(hooks: Iterable[Hook]) -> dict[str, list[dict]]:
    """Return the states of the hooks that have ``state_dict`` and ``load_state_dict``, by class."""
    states: dict[str, list[dict]] = {}
    for hook in hooks:
        if _has_state(hook):
            states.setdefault(type(hook).__name__, []).append(hook.state_dict())
    return states


def _has_state(hook: Hook) -> bool:
    return hasattr(hook, 'state_dict') and hasattr(hook, 'load_state_dict')


def load_states(runner: Runner, states: dict[str, list[dict]]) -> None:
    """Restore the states of :func:`states_of`, and log which hooks and schedules have none.

    Args:
        runner: Runner whose hooks are restored.
        states: Return value of :func:`states_of`; empty for a checkpoint of version 0.1.
    """
    left = {name: iter(saved) for name, saved in states.items()}
    missing = []
    for hook in filter(_has_state, runner.hooks):
        name = type(hook).__name__
        state = next(left.get(name, iter(())), None)
        if state is not None:
            hook.load_state_dict(state)
        elif isinstance(hook, EarlyStoppingHook) or not _is_of_a_library(hook):
            missing.append(name)
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else ()
    if not states:  # version 0.1 saved schedules before they had seen the validation's metric
        missing += [type(s).__name__ for s in schedulers if getattr(s, 'need_val_args', False)]
    if missing:
        print_log(
            'the resumed training will not be exact: the checkpoint does not contain the '
            f'current state of {", ".join(missing)}',
            'current',
            logging.WARNING,
        )


def _is_of_a_library(hook: Hook) -> bool:
    return type(hook).__module__.partition('.')[0] in _LIBRARIES


class UnknownStates:
    """Warns of hooks that have a state, but no ``state_dict`` to save it.

    A hook is assumed to have a state if its numbers, texts or collections change during a training.
    """

    def __init__(self) -> None:
        self._attributes: dict[int, dict[str, str]] | None = None  # by the id of the hook

    def start(self, hooks: Iterable[Hook]) -> None:
        """Remember the attributes. Only the first call does: hooks may set up in iteration 1."""
        if self._attributes is None:
            self._attributes = {id(hook): _plain_attributes(hook) for hook in _unknown(hooks)}

    def warn_of_changes(self, hooks: Iterable[Hook]) -> None:
        """Log a warning, once, for each hook whose attributes have changed."""
        attributes = self._attributes or {}
        for hook in _unknown(hooks):
            before = attributes.get(id(hook)) or {}
            now = _plain_attributes(hook)
            changed = [name for name in before if now.get(name) != before[name]]
            if changed:
                attributes[id(hook)] = {}
                print_log(
                    f'a resumed training may not be exact: {type(hook).__name__} changes its '
                    f'{", ".join(changed)}, which checkpoints do not contain; give this hook '
                    'methods state_dict and load_state_dict if the training depends on it',
                    'current',
                    logging.WARNING,
                )


def _unknown(hooks: Iterable[Hook]) -> Iterable[Hook]:
    return [hook for hook in hooks if not _has_state(hook) and not _is_of_a_library(hook)]


def _plain_attributes(hook: Hook) -> dict[str, str]:
    kinds = bool | int | float | str | list | dict | tuple | set | None
    return {name: repr(value) for name, value in vars(hook).items() if isinstance(value, kinds)}
