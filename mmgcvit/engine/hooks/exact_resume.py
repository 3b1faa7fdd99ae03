"""Trainings in segments, so that a resumed training does what an uninterrupted one does.

A segment extends from one checkpoint to the next (epoch-based: over one epoch). At the beginning of
a segment, in every training, all random generators are seeded from the training's seed, the rank
and the iteration: those of the process, those of the data workers, and the position in the
sampler's order. So a checkpoint needs no random state, and the checkpoint of rank 0 suffices for
all ranks.
"""

import itertools
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader

from ...errors import UserError
from ...registry import HOOKS
from ..options import accumulative_counts
from ..workers import ignore_sigterm_of_others, sigterm_blocked
from .hook_states import UnknownStates, load_states, states_of

_SEGMENT_START = 'segment_start'  # in the message hub: the iteration of the last checkpoint


def end_segment(runner: Runner, iteration: int) -> None:
    """Begin a new segment before this iteration; every rank, before a checkpoint is saved.

    The running statistics of batch norm, which may differ between ranks, are set to those of rank
    0: the checkpoint contains only these, and a validation then gives the checkpoint's metrics.
    """
    runner.message_hub.update_info(_SEGMENT_START, iteration)
    for statistic in runner.model.buffers():
        if statistic.is_floating_point():
            broadcast(statistic)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Train segment by segment, with mmengine's epoch-based or iteration-based loop.

    It replaces the training's data loader and iterator. :class:`SafeCheckpointHook` ends segments.
    The states of hooks with ``state_dict`` and ``load_state_dict`` are saved in checkpoints; a hook
    of the user's that has state but not these methods is named in a warning.

    An epoch that a checkpoint interrupted continues after the images that it was trained on.
    """

    # before the hooks that set the sampler's epoch or change the dataset's pipeline
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._segments: _Segments | None = None
        self._batches = 0  # of the current epoch, trained on so far
        self._images = 0  # the same over all ranks, as their number may change at a resume
        self._length = 0  # of an epoch, in iterations
        self._unknown_states = UnknownStates()

    def state_dict(self) -> dict[str, int]:
        """Return the position in the current epoch."""
        return {'batches': self._batches, 'images': self._images, 'length': self._length}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the state of :meth:`state_dict`."""
        self._batches, self._images = state['batches'], state['images']
        self._length = state['length']

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['hooks'] = states_of(runner.hooks)
        self._unknown_states.warn_of_changes(runner.hooks)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            load_states(runner, checkpoint.get('hooks') or {})

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        saved, self._length = self._length, len(loop.dataloader)
        if saved not in (0, self._length) and isinstance(loop, EpochBasedTrainLoop):
            self._recount(runner)
        for reason in _inexact(runner):
            print_log(f'a resumed training will not be exact: {reason}', 'current', logging.WARNING)
        self._segments = _Segments(runner)
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _SegmentIterator(runner, self._segments)
        elif self._batches:
            print_log(
                f'resuming epoch {runner.epoch + 1} after {self._batches} of {self._length} '
                'iterations: not exact, because random numbers differ from now on',
                'current',
                logging.WARNING,
            )

    def _recount(self, runner: Runner) -> None:
        """Count the iterations of past epochs by the length that epochs have now.

        Otherwise, the training and its schedules would end too early or too late.
        """
        loop = runner.train_loop
        self._batches = min(self._images // _images_per_iteration(runner), self._length)
        loop._iter = loop.epoch * self._length + self._batches
        runner.optim_wrapper.initialize_count_status(runner.model, loop.iter, loop.max_iters)

    def after_train(self, runner: Runner) -> None:
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(iterator, _SegmentIterator):
            iterator.close()

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        assert self._segments is not None  # of before_train
        loop.dataloader = self._segments.begin(runner.iter, self._batches, endless=False)
        self._images = self._batches * _images_per_iteration(runner)
        if self._batches:
            # the loop counts from 0, and hooks compare this with the length of the epoch
            loop.run_iter = partial(_run_iter, loop.run_iter, self._batches)

    def after_train_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        self._unknown_states.start(runner.hooks)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._batches += 1
            self._images += _images_per_iteration(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self._batches = self._images = 0
        run_iter = vars(runner.train_loop).get('run_iter')
        if isinstance(run_iter, partial) and run_iter.func is _run_iter:
            del runner.train_loop.run_iter

    def after_val(self, runner: Runner) -> None:
        if self._segments is not None:
            # The first validation of a process draws other numbers than later ones, because it
            # starts workers.
            self._segments.seed(runner.iter)


def _run_iter(original: Callable, done: int, idx: int, data_batch: Any) -> None:
    original(idx + done, data_batch)


def _images_per_iteration(runner: Runner) -> int:
    return (runner.cfg.train_dataloader.get('batch_size') or 1) * get_world_size()


def _inexact(runner: Runner) -> Iterator[str]:
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if not by_epoch and not isinstance(loop, IterBasedTrainLoop):
        yield f'only with EpochBasedTrainLoop or IterBasedTrainLoop, not {type(loop).__name__}'
    model = runner.model
    on_cpu = isinstance(model, DistributedDataParallel) and model.device_type == 'cpu'
    # DDP regroups gradients after its first step, and sums of three depend on the grouping
    if on_cpu and get_world_size() > 2 and not model.find_unused_parameters:
        yield (
            'sums of gradients over more than 2 processes depend on when the training was '
            'started; set model_wrapper_cfg.find_unused_parameters=True'
        )
    accumulated = accumulative_counts(runner.cfg)
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or hook.interval <= 0:
            continue
        if by_epoch and not hook.by_epoch:
            yield (
                'checkpoints at intervals of iterations interrupt epochs, which then continue with '
                'other random numbers; set by_epoch=True in default_hooks.checkpoint'
            )
        steps = hook.interval * (len(loop.dataloader) if hook.by_epoch else 1)
        if steps % accumulated:
            yield (
                f'the {steps} iterations between checkpoints are not a multiple of '
                f'accumulative_counts={accumulated}, and checkpoints do not contain gradients; '
                'change interval in default_hooks.checkpoint'
            )


def _seed_generators(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch from integers."""
    sequence = np.random.SeedSequence(key)
    for_python, for_numpy, for_torch = sequence.spawn(3)
    random.seed(int(for_python.generate_state(1, np.uint64)[0]))
    np.random.seed(for_numpy.generate_state(4))
    torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))


def _seed_worker(worker: int, key: tuple[int, ...], before: Callable | None) -> None:
    ignore_sigterm_of_others()
    if before is not None:
        before(worker)
    # + 1: a key that ends in 0 gives the same seed as the key without it, the main process's
    _seed_generators(*key, worker + 1)


class _Batches:
    """Indices of the batches from ``start`` on; the images of earlier ones are not loaded.

    Args:
        batch_sampler: Batches of an epoch.
        start: Number of batches to skip.
        endless: Whether to repeat epochs. If not, this is the rest of one epoch.
    """

    def __init__(self, batch_sampler: BatchSampler, start: int, endless: bool) -> None:
        if len(batch_sampler) == 0:
            raise UserError(
                'train_dataloader gives no batch: the dataset has fewer images than batch_size '
                f'and drop_last=True ({len(batch_sampler.sampler)} per process)'
            )
        self.batch_sampler = batch_sampler
        self.start = start
        self.endless = endless

    @property
    def sampler(self) -> Any:
        """The sampler, whose epoch mmengine's DistSamplerSeedHook sets."""
        return self.batch_sampler.sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._all_epochs() if self.endless else self.batch_sampler
        return itertools.islice(batches, self.start, None)

    def _all_epochs(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            if hasattr(self.batch_sampler.sampler, 'set_epoch'):
                self.batch_sampler.sampler.set_epoch(epoch)
            yield from self.batch_sampler


class _Loader(DataLoader):
    """A data loader whose workers do not end by SIGTERM before they ignore it."""

    def __iter__(self) -> Iterator[Any]:
        with sigterm_blocked():
            return super().__iter__()


class _Segments:
    """Builds the data loader of each segment from the training's."""

    def __init__(self, runner: Runner) -> None:
        loader = runner.train_loop.dataloader
        self._config = runner.cfg.train_dataloader
        self._before = loader.worker_init_fn
        # persistent_workers would keep the random state and the batches of the segment before
        self._settings = {
            name: getattr(loader, name)
            for name in (
                'dataset',
                'num_workers',
                'collate_fn',
                'pin_memory',
                'timeout',
                'multiprocessing_context',
                'prefetch_factor',
            )
        }
        # Rank 0's: with diff_rank_seed they differ. After a resume it is the checkpoint's, while
        # the training's own data loader was built with another one if the config gives none.
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        self._seed = seeds[0]

    def seed(self, iteration: int) -> tuple[int, ...]:
        """Seed this process's generators, and return the key."""
        key = (self._seed, get_rank(), iteration)
        _seed_generators(*key)
        return key

    def begin(self, iteration: int, skip: int = 0, endless: bool = False) -> DataLoader:
        """Seed this process and return a loader with seeded workers.

        Args:
            iteration: The first iteration of the segment.
            skip: Number of batches to skip.
            endless: Whether the loader continues with further epochs.
        """
        key = self.seed(iteration)
        batches = self._batch_sampler()
        return _Loader(
            batch_sampler=_Batches(batches, skip, endless) if skip or endless else batches,
            worker_init_fn=partial(_seed_worker, key=key, before=self._before),
            **self._settings,
        )

    def _batch_sampler(self) -> BatchSampler:
        """Build sampler and batch sampler as Runner.build_dataloader does, with the seed."""
        dataset, config = self._settings['dataset'], self._config
        sampler = DATA_SAMPLERS.build(
            config.sampler, default_args={'dataset': dataset, 'seed': self._seed}
        )
        if config.get('batch_sampler') is None:
            return BatchSampler(sampler, config.batch_size, config.get('drop_last', False))
        return DATA_SAMPLERS.build(
            config.batch_sampler,
            default_args={'sampler': sampler, 'batch_size': config.batch_size},
        )


class _SegmentIterator:
    """The batches of an iteration-based training; replaces mmengine's iterator.

    A segment begins when its first batch is requested: after the validation that follows a
    checkpoint, so the validation's workers and random numbers do not affect the training's.
    """

    def __init__(self, runner: Runner, segments: _Segments) -> None:
        self._runner = runner
        self._segments = segments
        self._start = -1
        self._batches: Iterator[Any] = iter(())
        # The loop will skip the batches of earlier iterations: mmengine requests that many batches,
        # onedl-mmengine calls skip_iter. Not needed: segments begin at the right position.
        one_by_one = not hasattr(runner.train_loop.dataloader_iterator, 'skip_iter')
        self._ignored = runner.iter if one_by_one else 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def close(self) -> None:
        """End the data workers. The garbage collector would wait 5 seconds for each of them."""
        self._batches = iter(())

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing; see the comment in ``__init__``."""

    def __next__(self) -> Any:
        if self._ignored > 0:
            self._ignored -= 1
            return None
        iteration = self._runner.iter
        checkpoint = self._runner.message_hub.get_info(_SEGMENT_START) == iteration
        if self._start < 0 or (checkpoint and self._start != iteration):
            self._start = iteration
            self.close()  # the segment before
            loader = self._segments.begin(iteration, skip=iteration, endless=True)
            self._runner.train_loop.dataloader = loader
            self._batches = iter(loader)
        return next(self._batches)
