"""Checkpoints, of which a complete one is on the disk at any time."""

import inspect
import logging
import pickle
import traceback
from bisect import bisect
from os import PathLike
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...errors import UserError, describe, did_you_mean
from ...files import remove_partial_files, write_atomically
from ...registry import HOOKS
from ..known_errors import known_error, location
from ..resume import ITERATION_NAME
from .exact_resume import end_segment
from .hook_states import states_of


def _write(path: Path, content: bytes) -> None:
    """Write a file. If that fails, an existing file of that name remains unchanged."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f'{path} could not be written ({error}); earlier files are complete. Free some space '
            'there, then resume with --resume'
        ) from error


class AtomicBackend(LocalBackend):
    """mmengine's backend for local files; each is written to another name, synced and renamed."""

    def put(self, obj: bytes, filepath: str | PathLike) -> None:
        _write(Path(filepath), obj)

    def put_text(self, obj: str, filepath: str | PathLike, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def register_file_backend() -> None:
    """Make mmengine write local files atomically, for all runners of this process.

    Only this package's tools call this: importing the package changes nothing.
    """
    register_backend('local', AtomicBackend, force=True, prefixes='')


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes a file only when its successor is complete.

    It also repeats a validation that was interrupted, so that its metrics and the best checkpoint
    are not lost, and saves the checkpoint again after a validation that changed the state of the
    training. Takes the arguments of mmengine's hook.
    """

    # paths to remove once a checkpoint that does not refer to them is complete
    _outdated: tuple[str, ...] = ()
    is_training = False
    # of the checkpoint that was saved or resumed from last
    _iteration: int | None = None
    _validated = False  # saved again after its validation
    _mid_epoch = False
    # what a validation may change, as it was when the last checkpoint was saved
    _saved_state: bytes | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Pass the arguments to mmengine's hook, which accepts any name until it saves.

        Raises:
            UserError: If there is no such argument, or ``save_best`` needs a ``rule``.
        """
        option = 'default_hooks.checkpoint'
        functions = (CheckpointHook.__init__, Runner.save_checkpoint)
        known = {name for each in functions for name in inspect.signature(each).parameters}
        for name in kwargs:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UserError(f'{option}.{name}: CheckpointHook has no argument {name}{hint}')
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:
            if 'infer the rule' not in str(error):
                raise
            raise UserError(
                f'{option}.save_best is {kwargs.get("save_best")!r}, and it is unknown whether '
                'more of it is better: correct the name of the metric, or set '
                f'{option}.rule=greater or less'
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training has to know about the checkpoint itself."""
        return {
            'iteration': self._iteration,
            'validated': self._validated,
            'mid_epoch': self._mid_epoch,
            'outdated': [Path(path).name for path in self._outdated],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._iteration, self._validated = state['iteration'], state['validated']
        self._mid_epoch, self._outdated = state['mid_epoch'], tuple(state['outdated'])

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.is_training = True
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            remove_partial_files(Path(self.out_dir), Path(self.filename_tmpl).suffix)
        # a kill may have left them; the checkpoint of SIGTERM itself is needed until the next one
        resumed = Path(str(getattr(runner, '_load_from', ''))).name
        left = [self._in_out_dir(name) for name in self._outdated if name != resumed]
        self._outdated = tuple(self._in_out_dir(n) for n in self._outdated if n == resumed)
        for path in left:
            self._remove(path)
        if self._outdated and not self._mid_epoch:  # ExactResumeHook names the epoch
            print_log(
                'the resumed training will not be exact: SIGTERM saved the checkpoint between the '
                'regular ones, so random numbers differ from now on',
                'current',
                logging.WARNING,
            )
        if runner.iter > 0 and self._is_validation_due(runner):
            self._repeat_validation(runner)

    def _repeat_validation(self, runner: Runner) -> None:
        runner.logger.info(
            f'The validation after iteration {runner.iter} was not finished: repeating it now.'
        )
        # after_val saves it again
        self.last_ckpt: str | None = self._path(self._validated_step(runner))
        try:
            runner.val_loop.run()
        except Exception as error:
            raise self.failed_validation(runner, error) from error

    def failed_validation(self, runner: Runner, error: Exception) -> UserError:
        """Return the error that ends a training whose validation raised an exception.

        Its message includes what the next ``--resume`` does.
        """
        reason = known_error(error)
        if reason is None:
            reason = f'{describe(error)} ({location(error)})'
            if is_main_process():
                reason += '; the traceback is in the log file'
            else:  # only the first process has a log file
                traceback.print_exception(error)
        reason = reason.rstrip('.')
        skip = ''
        if self.is_saved(runner):
            skip = f'; or skip this validation: delete {self._mark(runner)}, then --resume'
        return UserError(
            f'the validation after iteration {runner.iter} failed: {reason}. '
            f'{self.resumes_with(runner)}. Fix the cause (the data or the config of the '
            f'validation), then --resume{skip}'
        )

    def is_saved(self, runner: Runner) -> bool:
        """Whether there is a checkpoint of the current iteration."""
        return self._iteration == runner.iter > 0

    def resumes_with(self, runner: Runner) -> str:
        """Return a sentence: what ``--resume`` does after a validation that was not finished."""
        if self.is_saved(runner):
            return 'The weights are saved, and --resume repeats the validation'
        return self.last_saved()

    def last_saved(self) -> str:
        """Return a sentence: where ``--resume`` continues."""
        if self._iteration:
            return (
                'The last checkpoint is of iteration '
                f'{self._iteration}, and --resume continues from there'
            )
        return 'There is no checkpoint yet'

    def before_val_epoch(self, runner: Runner) -> None:
        if self.is_training and is_main_process():
            _write(self._mark(runner), str(runner.iter).encode())

    def after_val(self, runner: Runner) -> None:
        """Save the checkpoint again if the validation changed the state of the training.

        The validation counts as done when this checkpoint is complete: early stopping, schedules
        on its metric and best scores are in it.
        """
        if not self.is_training:
            return
        step = self._validated_step(runner)
        if self.last_ckpt == self._path(step):
            # by the first process: hooks may keep a state there only
            changed = [_state_of(runner, self) != self._saved_state]
            broadcast_object_list(changed)
            if changed[0]:
                meta = dict(epoch=runner.epoch, iter=runner.iter)
                self._write_checkpoint(runner, self.last_ckpt, meta, validated=True)
            self._remove_outdated()
        if is_main_process():
            self._mark(runner).unlink(missing_ok=True)

    def save_now(self, runner: Runner, epoch: int, iteration: int) -> None:
        """Save a checkpoint that is not due, unless this hook has just saved it.

        It is removed when the next regular checkpoint is complete.

        Args:
            runner: Runner of the training.
            epoch: Number of completed epochs.
            iteration: Number of completed iterations.
        """
        step = epoch if self.by_epoch else iteration
        if self._iteration == iteration and self.last_ckpt == self._path(step):
            return
        name = (ITERATION_NAME if self.by_epoch else self.filename_tmpl).format(iteration)
        path = self._in_out_dir(name)
        self._outdated = tuple(dict.fromkeys([*self._outdated, path]))
        self._mark_validation(runner, epoch, iteration)
        self._write_checkpoint(runner, path, dict(epoch=epoch, iter=iteration))
        self._record(runner, path)

    # The methods below replace private ones: mmengine has no public place between writing and
    # removing files.

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
            # The file itself contains the number of the one that is removed next: if this process
            # is killed before that, mmengine removes it when the training is resumed.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        # before the checkpoint, for a kill between the two
        self._mark_validation(runner, meta['epoch'], meta['iter'])
        self._write_checkpoint(runner, self.last_ckpt, meta)
        self._record(runner, self.last_ckpt)
        if kept:
            for outdated in kept[: -self.max_keep_ckpts]:
                self._remove(self._path(outdated))
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._remove_outdated()

    def _write_checkpoint(
        self, runner: Runner, path: str, meta: dict, validated: bool = False
    ) -> None:
        self._iteration, self._validated = meta['iter'], validated
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        self._mid_epoch = by_epoch and not validated and meta['epoch'] == runner.epoch
        self._saved_state = _state_of(runner, self)
        end_segment(runner, meta['iter'])
        runner.save_checkpoint(
            self.out_dir,
            Path(path).name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )

    def _record(self, runner: Runner, path: str) -> None:
        if is_main_process():
            _write(Path(runner.work_dir) / 'last_checkpoint', path.encode())

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            # as mmengine does, but before the paths below are named after the metric
            self._init_rule(self.rules, [next(iter(metrics))])
        missing = [name for name in self.key_indicators if name not in metrics]
        if missing:
            raise UserError(
                f'default_hooks.checkpoint.save_best is {", ".join(missing)}, and the validation '
                f'computes {", ".join(metrics)}: set it to one of these or to auto, or add the '
                'metric to val_evaluator'
            )
        before, last = self._best, self.last_ckpt
        # mmengine would remove the files of these before it writes their successors
        self._best = dict.fromkeys(before)
        # It would also save a checkpoint. after_val does so, but only where there already is one:
        # an uninterrupted training has to have the same checkpoints, which divide it into segments.
        self.last_ckpt = None
        super()._save_best_checkpoint(runner, metrics)
        self.last_ckpt = last
        after = self._best
        self._best = {name: after[name] or path for name, path in before.items()}
        # by name: in a copied or moved work dir, the paths lead to the original one
        own = {name: self._in_out_dir(Path(path).name) for name, path in before.items() if path}
        self._outdated += tuple(p for name, p in own.items() if after[name] not in (None, p))

    @property
    def _best(self) -> dict[str, str | None]:
        """Paths of the best checkpoints by metric, which mmengine keeps in one of two ways."""
        if len(self.key_indicators) == 1:
            return {self.key_indicators[0]: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            (self.best_ckpt_path,) = paths.values()
        else:
            self.best_ckpt_path_dict = paths

    def _remove_outdated(self) -> None:
        for path in self._outdated:
            if path != self.last_ckpt:
                self._remove(path)
        self._outdated = ()

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _path(self, step: int) -> str:
        return self._in_out_dir(self.filename_tmpl.format(step))

    def _in_out_dir(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _validated_step(self, runner: Runner) -> int:
        """Return the number in the file name of the checkpoint that is validated now."""
        return runner.epoch if self.by_epoch else runner.iter

    def _mark(self, runner: Runner) -> Path:
        """Return the file with the iteration after which a validation is due, until it is done."""
        return Path(runner.work_dir) / 'unfinished_validation'

    def _mark_validation(self, runner: Runner, epoch: int, iteration: int) -> None:
        if is_main_process() and _validation_follows(runner, epoch, iteration):
            _write(self._mark(runner), str(iteration).encode())

    def _is_validation_due(self, runner: Runner) -> bool:
        """Whether the validation after the checkpoint that is resumed from has to be repeated."""
        mark: list[str | None] = [None]
        if is_main_process() and self._mark(runner).is_file():
            mark[0] = self._mark(runner).read_text()
        broadcast_object_list(mark)
        iteration = runner.iter if self._iteration is None else self._iteration
        if mark[0] != str(iteration) or runner.val_loop is None or self._mid_epoch:
            return False
        if self._validated and is_main_process():  # killed before the mark was removed
            self._mark(runner).unlink(missing_ok=True)
        return not self._validated


def _validation_follows(runner: Runner, epoch: int, iteration: int) -> bool:
    """Whether the training loop validates right after that many epochs and iterations."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        step, last = epoch, loop.max_epochs
        at_end = epoch > runner.epoch  # not in the middle of an epoch
    elif isinstance(loop, IterBasedTrainLoop):
        step, last, at_end = iteration, loop.max_iters, True
    else:
        return False
    if runner.val_loop is None or not at_end or step < loop.val_begin:
        return False
    # the loop selects the interval after this epoch or iteration, too
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, step + 1) - 1]
    return step % interval == 0 or step == last


def _state_of(runner: Runner, own: Hook) -> bytes:
    """Return what a validation may change, in a form that can be compared."""
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [scheduler for some in schedulers.values() for scheduler in some]
    info = runner.message_hub.runtime_info
    return pickle.dumps(
        (
            [scheduler.state_dict() for scheduler in schedulers],
            states_of(hook for hook in runner.hooks if hook is not own),
            {name: value for name, value in info.items() if name.startswith('best_')},
        )
    )
