"""Resuming with other settings than the checkpoint's: which of them are used."""

import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, FlexibleRunner, Runner

from ...registry import HOOKS
from ..options import accumulative_counts

# what changes in the state of a scheduler during a training; the rest are its settings
_PROGRESS = {
    *('base_values', 'last_step', '_global_step', '_last_value', 'verbose'),
    *('best', 'cooldown_counter', 'num_bad_epochs'),  # of ReduceOnPlateau
}


@HOOKS.register_module()
class ResumedSettingsHook(Hook):
    """Compare the settings of a resumed training with its checkpoint's, and log which are used.

    - If the schedule has changed (``param_scheduler``, or the length of the training that it
      depends on), the config's schedule is used, as if the training had used it from the beginning.
      mmengine would continue the checkpoint's.
    - Learning rate, weight decay and other settings of the optimizer are the checkpoint's.
    - A changed number of processes, batch size or accumulation is reported.

    Nothing changes if the settings are the same.
    """

    priority = 'HIGH'  # after ExactResumeHook, before the validation that CheckpointHook may repeat

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._saved: dict[str, Any] = {}  # of the checkpoint
        self._changed_schedule: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the settings that are not in the rest of the checkpoint."""
        return self._settings

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the checkpoint's settings for the comparison."""
        self._saved = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume or not isinstance(runner.optim_wrapper, OptimWrapper):
            return
        if 'ema_state_dict' in checkpoint and not any(isinstance(h, EMAHook) for h in runner.hooks):
            _warn(
                'the config has no EMAHook, but the checkpoint was saved with one: training '
                'continues from the averaged weights, and its result differs from an uninterrupted '
                'training. To continue from the trained weights, add EMAHook to custom_hooks'
            )
        for line in _changes_of_optimizer(runner, checkpoint):
            _warn(line)
        schedulers, saved = runner.param_schedulers, checkpoint.get('param_schedulers')
        if isinstance(schedulers, list) and isinstance(saved, list):
            self._changed_schedule = list(_changes_of_schedule(schedulers, saved))
            now, before = len(runner.train_loop.dataloader), self._saved.get('iterations_per_epoch')
            if before not in (None, now) and not all(s.by_epoch for s in schedulers):
                self._changed_schedule.append(
                    f'{now} iterations per epoch, {before} in the checkpoint'
                )
            if self._changed_schedule and not isinstance(runner, FlexibleRunner):
                checkpoint['param_schedulers'] = []  # mmengine loads none

    def before_train(self, runner: Runner) -> None:
        self._settings = _settings_of(runner)
        if runner.iter == 0 and not self._saved:
            return
        loop = runner.train_loop
        if is_finished(loop):
            if self._changed_schedule and not isinstance(runner, FlexibleRunner):
                _restart_schedule(runner)  # a repeated validation saves its state
            name, done, last = _progress(loop)
            if done >= last:  # ResumableEarlyStoppingHook reports the other reason
                _warn(
                    f'nothing is left to train: the checkpoint is at {name[4:-1]} {done}, and '
                    f'train_cfg.{name} is {last}; to train longer, increase it and, if necessary, '
                    'the ends of param_scheduler'
                )
            return
        for line in _changes_of_run(self._saved, self._settings):
            _warn(line)
        if self._changed_schedule:
            self._report_schedule(runner)

    def _report_schedule(self, runner: Runner) -> None:
        changes = '; '.join(self._changed_schedule)
        if isinstance(runner, FlexibleRunner):
            _warn(
                f'the schedule has changed ({changes}), but with a FlexibleRunner the '
                "checkpoint's is used; to use the config's, start a new training from the weights: "
                'load_from=CHECKPOINT without --resume'
            )
            return
        _restart_schedule(runner)
        plateau = [
            type(scheduler).__name__
            for scheduler in runner.param_schedulers
            if getattr(scheduler, 'need_val_args', False)
        ]
        past = (
            f'; {", ".join(plateau)} starts without the metrics of past validations'
            if plateau
            else ''
        )
        _warn(
            f"the schedule has changed ({changes}): the config's is used from iteration "
            f'{runner.iter} on, as if the training had used it from the beginning{past}. To keep '
            "the checkpoint's, undo the change of param_scheduler and train_cfg"
        )


def is_finished(loop: BaseLoop) -> bool:
    """Whether a training loop ends before its next iteration."""
    _, done, last = _progress(loop)
    return done >= last or getattr(loop, 'stop_training', False)


def _progress(loop: BaseLoop) -> tuple[str, int, int]:
    """Return the option that limits a training, the progress and the limit."""
    if isinstance(loop, EpochBasedTrainLoop):
        return 'max_epochs', loop.epoch, loop.max_epochs
    return 'max_iters', loop.iter, loop.max_iters


def _warn(line: str) -> None:
    if is_main_process():
        print_log(line, 'current', logging.WARNING)


def _settings_of(runner: Runner) -> dict[str, Any]:
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    return {
        'processes': get_world_size(),
        'batch_size': runner.cfg.train_dataloader.get('batch_size') or 1,
        'accumulative_counts': accumulative_counts(runner.cfg),
        'iterations_per_epoch': len(loop.dataloader) if by_epoch else None,
        'max_epochs' if by_epoch else 'max_iters': loop.max_epochs if by_epoch else loop.max_iters,
    }


def _changes_of_run(saved: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    if not saved:
        return
    parts = ('processes', 'batch_size', 'accumulative_counts')
    if any(saved[name] != now[name] for name in parts):
        images = [_images_per_step(settings) for settings in (saved, now)]
        epoch = [settings['iterations_per_epoch'] for settings in (saved, now)]
        yield (
            f'images per step: {images[1]}, but {images[0]} in the checkpoint: the learning rate '
            'is not adapted, the order of the images changes, and the result differs from an '
            'uninterrupted training'
            + (
                f'; an epoch has {epoch[1]} iterations, but {epoch[0]} in the checkpoint, so the '
                'number of iterations so far is counted in epochs'
                if epoch[0] != epoch[1]
                else ''
            )
        )
    for name in ('max_epochs', 'max_iters'):
        if saved.get(name, now.get(name)) != now.get(name) is not None:
            yield (
                f'train_cfg.{name} is {now[name]}, but {saved[name]} in the checkpoint: '
                f'training ends at {now[name]}'
            )


def _images_per_step(settings: dict[str, Any]) -> str:
    processes, batch, counts = (
        settings[name] for name in ('processes', 'batch_size', 'accumulative_counts')
    )
    text = f'{processes} process{"es" * (processes > 1)} × batch size {batch}'
    text += f' × {counts} accumulated' * (counts > 1)
    return f'{processes * batch * counts} ({text})'


def _changes_of_optimizer(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """Yield a line if settings of the optimizer differ; those of the checkpoint are loaded."""
    built = runner.optim_wrapper.optimizer.param_groups
    saved = (checkpoint.get('optimizer') or {}).get('param_groups') or []
    changes: dict[str, tuple[Any, Any]] = {}
    for new, old in zip(built, saved, strict=False):
        for name in new.keys() & old.keys() - {'params'}:
            # the value before the schedule, if there is one
            initial = f'initial_{name}'
            key = initial if initial in new and initial in old else name
            if not name.startswith('initial_') and new[key] != old[key]:
                changes.setdefault(name, (old[key], new[key]))
    if changes:
        values = ', '.join(f'{k} {old} (config: {new})' for k, (old, new) in changes.items())
        yield (
            f"the checkpoint's settings of the optimizer are used: {values}. To use the config's, "
            'start a new training from the weights: load_from=CHECKPOINT without --resume'
        )


def _changes_of_schedule(schedulers: list, saved: list[dict]) -> Iterator[str]:
    """Yield how the schedulers of the config differ from the states in a checkpoint."""
    if len(schedulers) != len(saved):
        yield f'{len(schedulers)} schedulers, {len(saved)} in the checkpoint'
        return
    for index, (scheduler, old) in enumerate(zip(schedulers, saved, strict=True)):
        new, where = scheduler.state_dict(), f'param_scheduler.{index}'
        names = sorted((new.keys() | old.keys()) - _PROGRESS)
        if any(name not in new or name not in old for name in names):
            yield f'{where} is of another type'
            continue
        for name in names:
            if new[name] != old[name]:
                yield f'{where}: {name} {new[name]}, {old[name]} in the checkpoint'


def _restart_schedule(runner: Runner) -> None:
    """Build the config's schedulers and step them as often as the training did so far."""
    wrapper, config = runner.optim_wrapper, runner.cfg.param_scheduler
    for group in wrapper.param_groups:
        for name in [name for name in group if name.startswith('initial_')]:
            group[name.removeprefix('initial_')] = group[name]
    groups = wrapper.optimizer.param_groups
    # mmengine makes a group of each parameter, and stepping hundreds of them would take minutes
    keys = [repr(sorted(_without_params(group).items())) for group in groups]
    examples = {key: dict(group) for key, group in zip(keys, groups, strict=True)}
    with warnings.catch_warnings():
        # of steps without the optimizer's
        warnings.simplefilter('ignore', UserWarning)
        wrapper.optimizer.param_groups = list(examples.values())
        try:
            stepped = runner.build_param_scheduler(copy.deepcopy(config))
            _step_to(runner, stepped)
            base = _without_params(wrapper.base_param_settings or {})  # as if it were a group
        finally:
            wrapper.optimizer.param_groups = groups
        runner.param_schedulers = runner.build_param_scheduler(copy.deepcopy(config))
    for key, group in zip(keys, groups, strict=True):
        group.update(_without_params(examples[key]))
    if base:
        wrapper.base_param_settings.update(base)
    for scheduler, other in zip(runner.param_schedulers, stepped, strict=True):
        scheduler.last_step, scheduler._global_step = other.last_step, other._global_step
        scheduler._last_value = [group[scheduler.param_name] for group in wrapper.param_groups]


def _without_params(group: dict) -> dict:
    return {name: value for name, value in group.items() if name != 'params'}


def _step_to(runner: Runner, schedulers: list) -> None:
    """Step as ParamSchedulerHook does until the iteration of the runner."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    length = len(runner.train_loop.dataloader)
    for iteration in range(1, runner.iter + 1):
        for scheduler in schedulers:
            if not scheduler.by_epoch or (by_epoch and iteration % length == 0):
                scheduler.step()
