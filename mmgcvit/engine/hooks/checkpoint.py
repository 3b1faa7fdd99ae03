"""Checkpoints of which at every moment a whole one is on the disk."""

from os import PathLike
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...errors import UserError
from ...files import remove_partial_files, write_atomically
from ...registry import HOOKS
from .exact_resume import end_segment


def _write(path: Path, content: bytes) -> None:
    """Write a file; if the disk does not take it, an older one of that name is left as it was."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f'{path} could not be written ({error}); the files before it are whole. Make room '
            'there, then go on with --resume'
        ) from error


class AtomicBackend(LocalBackend):
    """Local files of mmengine, each written under another name, synced to the disk and renamed."""

    def put(self, obj: bytes, filepath: str | PathLike) -> None:
        _write(Path(filepath), obj)

    def put_text(self, obj: str, filepath: str | PathLike, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def register_file_backend() -> None:
    """Make mmengine write local files atomically, process-wide, whichever runner saves them.

    Called by this package's tools only: importing the package changes nothing.
    """
    register_backend('local', AtomicBackend, force=True, prefixes='')


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which removes a file only when the one after it is whole.

    Besides, the validation that a checkpoint was saved before is caught up with when the training
    was killed in it, so that its metrics and the best checkpoint are not lost. Takes the arguments
    of mmengine's.
    """

    # of best checkpoints, to be removed once a checkpoint that names a better one is whole
    _outdated: tuple[str, ...] = ()
    _training = False

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._training = True
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            remove_partial_files(Path(self.out_dir), Path(self.filename_tmpl).suffix)
        if runner.iter > 0 and self._killed_in_validation(runner):
            runner.logger.info(
                f'The validation after iteration {runner.iter} was not finished: doing it now.'
            )
            # so that it is saved again if it turns out to be the best
            self.last_ckpt = self._path(self._validated_step(runner))
            runner.val_loop.run()

    def before_val_epoch(self, runner: Runner) -> None:
        if self._training and is_main_process():
            _write(self._mark(runner), str(runner.iter).encode())

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        if self._training and is_main_process():
            self._mark(runner).unlink(missing_ok=True)

    # The two methods below replace private ones: mmengine has no public place between its writing
    # and its removing of files.

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [*(other for other in self.keep_ckpt_ids if other != step), step]
            # The file itself names the one that is about to go: if this process is killed before
            # that, mmengine removes it when the training is resumed.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        end_segment(runner, meta['iter'])
        if is_main_process() and _validation_follows(runner, step):
            # before the file that it is about, for a kill between that and the validation
            _write(self._mark(runner), str(meta['iter']).encode())
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            _write(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt.encode())
        if kept:
            for outdated in kept[: -self.max_keep_ckpts]:
                self._remove(self._path(outdated))
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            # as mmengine does, but before the paths below are named after the metric
            self._init_rule(self.rules, [next(iter(metrics))])
        before, last = self._best, self.last_ckpt
        # mmengine would remove these first, and cannot remove what it does not know
        self._best = dict.fromkeys(before)
        # It would save a checkpoint at every validation that is the best, too. A resumed training
        # has to have the same checkpoints, as they cut it into segments: it only updates one.
        updates = last == self._path(self._validated_step(runner))
        self.last_ckpt = last if updates else None
        super()._save_best_checkpoint(runner, metrics)
        self.last_ckpt = last
        after = self._best
        self._best = {name: after[name] or path for name, path in before.items()}
        # by their names: where a work dir was copied or moved, the paths lead to the original one
        own = {name: self._in_out_dir(Path(path).name) for name, path in before.items() if path}
        self._outdated += tuple(p for name, p in own.items() if after[name] not in (None, p))
        if updates:
            self._remove_outdated()

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
        """Return the number, in the files' names, of what is validated now."""
        return runner.epoch if self.by_epoch else runner.iter

    def _mark(self, runner: Runner) -> Path:
        """Return the file that tells after what iteration a validation is due, until it is done."""
        return Path(runner.work_dir) / 'unfinished_validation'

    def _killed_in_validation(self, runner: Runner) -> bool:
        found = [None]
        if is_main_process() and self._mark(runner).is_file():
            found[0] = self._mark(runner).read_text()
        broadcast_object_list(found)
        return found[0] == str(runner.iter) and runner.val_loop is not None


def _validation_follows(runner: Runner, step: int) -> bool:
    """Whether the training loop validates after an epoch or iteration, counted from 1."""
    loop = runner.train_loop
    known = isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop)
    if not known or runner.val_loop is None or step < loop.val_begin:
        return False
    last = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    return step % loop.val_interval == 0 or step == last
