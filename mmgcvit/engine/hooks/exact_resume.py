"""Trainings as chains of segments, so that a resumed one does what an uninterrupted one does.

A segment goes from one checkpoint to the next (epoch-based: from one epoch to the next). When it
begins, in every training alike, whatever is random is derived anew from the training's seed, the
rank and the iteration: the generators of the process, those of the data workers, and the place in
the sampler's order. So a checkpoint has to hold no random state, and one that rank 0 saved is
enough for all ranks.
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

_SEGMENT_START = 'segment_start'  # in the message hub: the iteration of the last checkpoint


def end_segment(runner: Runner, iteration: int) -> None:
    """Let a new segment begin before this iteration; every rank, before a checkpoint is saved.

    The running statistics of batch norm, which may differ between ranks, become those of rank 0:
    the checkpoint holds them alone, and a validation then gives what the checkpoint gives.
    """
    runner.message_hub.update_info(_SEGMENT_START, iteration)
    for statistic in runner.model.buffers():
        if statistic.is_floating_point():
            broadcast(statistic)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Train segment by segment, with mmengine's epoch-based or iteration-based loop.

    The training's data loader and iterator are replaced. Cut by :class:`SafeCheckpointHook`.
    """

    # before the hooks that set the sampler's epoch or change the dataset's pipeline
    priority = 'VERY_HIGH'
    _segments: '_Segments | None' = None

    def before_train(self, runner: Runner) -> None:
        for reason in _inexact(runner):
            print_log(f'a resumed training will not be exact: {reason}', 'current', logging.WARNING)
        self._segments = _Segments(runner)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.train_loop.dataloader_iterator = _SegmentIterator(runner, self._segments)

    def after_train(self, runner: Runner) -> None:
        iterator = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(iterator, _SegmentIterator):
            iterator.close()

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            runner.train_loop.dataloader = self._segments.begin(runner.iter)

    def after_val(self, runner: Runner) -> None:
        if self._segments is not None:
            # the first one of a process draws other numbers than those after it: it starts workers
            self._segments.seed(runner.iter)


def _inexact(runner: Runner) -> Iterator[str]:
    loop = runner.train_loop
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if not by_epoch and not isinstance(loop, IterBasedTrainLoop):
        yield f'only EpochBasedTrainLoop and IterBasedTrainLoop are, not {type(loop).__name__}'
    model = runner.model
    on_cpu = isinstance(model, DistributedDataParallel) and model.device_type == 'cpu'
    # DDP regroups gradients after its first step, and sums of three depend on the grouping
    if on_cpu and get_world_size() > 2 and not model.find_unused_parameters:
        yield (
            'sums of gradients over more than 2 processes depend on when the training was '
            'started; set model_wrapper_cfg.find_unused_parameters=True'
        )
    accumulated = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or hook.interval <= 0:
            continue
        if by_epoch and not hook.by_epoch:
            yield (
                'checkpoints of every so many iterations do not fall on the ends of epochs, and '
                'mmengine begins the epoch anew; set by_epoch=True in default_hooks.checkpoint'
            )
        steps = hook.interval * (len(loop.dataloader) if hook.by_epoch else 1)
        if steps % accumulated:
            yield (
                f'the {steps} iterations between checkpoints are no multiple of '
                f'accumulative_counts={accumulated}, and gradients are not in checkpoints; set '
                'another interval in default_hooks.checkpoint'
            )


def _seed_generators(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch from integers."""
    sequence = np.random.SeedSequence(key)
    for_python, for_numpy, for_torch = sequence.spawn(3)
    random.seed(int(for_python.generate_state(1, np.uint64)[0]))
    np.random.seed(for_numpy.generate_state(4))
    torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))


def _seed_worker(worker: int, key: tuple[int, ...], before: Callable | None) -> None:
    if before is not None:
        before(worker)
    # a key that ends in 0 gives what the key without it gives, and that is the main process's
    _seed_generators(*key, worker + 1)


class _Batches:
    """Indices of the batches from one on, without end; those before it are drawn, not loaded."""

    def __init__(self, batch_sampler: BatchSampler, start: int) -> None:
        if len(batch_sampler) == 0:
            raise UserError(
                'train_dataloader gives no batch: the dataset has fewer images than batch_size '
                f'and drop_last=True ({len(batch_sampler.sampler)} a process)'
            )
        self.batch_sampler = batch_sampler
        self.start = start

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._from_the_first(), self.start, None)

    def _from_the_first(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            if hasattr(self.batch_sampler.sampler, 'set_epoch'):
                self.batch_sampler.sampler.set_epoch(epoch)
            yield from self.batch_sampler


class _Segments:
    """Makes the data loader of each segment out of the training's."""

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
        """Seed this process's generators; return what from."""
        key = (self._seed, get_rank(), iteration)
        _seed_generators(*key)
        return key

    def begin(self, iteration: int, skip: int | None = None) -> DataLoader:
        """Seed this process and return a loader with seeded workers.

        Args:
            iteration: That the segment begins with.
            skip: Number of batches to go on after, without end; if None it is the loader of one
                epoch.
        """
        key = self.seed(iteration)
        batches = self._batch_sampler()
        return DataLoader(
            batch_sampler=batches if skip is None else _Batches(batches, skip),
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
    """The batches of an iteration-based training; takes the place of mmengine's iterator.

    A segment begins when its first batch is asked for: after the validation that follows a
    checkpoint, whose workers and random numbers thus stay apart from the training's.
    """

    def __init__(self, runner: Runner, segments: _Segments) -> None:
        self._runner = runner
        self._segments = segments
        self._start = -1
        self._batches: Iterator[Any] = iter(())
        # The loop is about to skip what was trained on before the resume: mmengine by taking that
        # many batches, onedl-mmengine through skip_iter. Segments begin at the right place anyhow.
        one_by_one = not hasattr(runner.train_loop.dataloader_iterator, 'skip_iter')
        self._ignored = runner.iter if one_by_one else 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def close(self) -> None:
        """End the data workers; torch waits 5 seconds for each that the garbage collector ends."""
        self._batches = iter(())

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: see above."""

    def __next__(self) -> Any:
        if self._ignored > 0:
            self._ignored -= 1
            return None
        iteration = self._runner.iter
        checkpoint = self._runner.message_hub.get_info(_SEGMENT_START) == iteration
        if self._start < 0 or (checkpoint and self._start != iteration):
            self._start = iteration
            self.close()  # the segment before
            loader = self._segments.begin(iteration, skip=iteration)
            self._runner.train_loop.dataloader = loader
            self._batches = iter(loader)
        return next(self._batches)
