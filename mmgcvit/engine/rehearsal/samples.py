"""The items that a rehearsal loads: few, but the ones that are most likely to fail."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from torch.utils.data import DataLoader, Dataset, Sampler

from ...errors import UserError, describe, place
from ...registry import DATA_SAMPLERS, DATASETS, class_of
from ...sampling import evenly
from ..screen import name_failing_images

SHARED: dict[str, Dataset] = {}


@DATASETS.register_module()
def shared_dataset(name: str) -> Dataset:
    """Return the dataset that was stored as ``SHARED[name]``.

    All runs of a rehearsal share their datasets: large annotation files take long to read.
    """
    return SHARED[name]


@DATA_SAMPLERS.register_module()
class FewSamples(Sampler):
    """Limit another sampler to a few items.

    Args:
        dataset: Dataset that is sampled.
        sampler: Config of the sampler that is limited. It is built as usual.
        number: Number of items in each process.
        indices: Items of all processes, ``number`` for each, in order of the ranks. By default,
            each process takes the first items of ``sampler``.
        seed: Seed of ``sampler``.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Mapping[str, Any],
        number: int,
        indices: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.number = number
        self.indices = indices
        self.sampler = MMENGINE_DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed)
        )

    def __iter__(self) -> Iterator[int]:
        if self.indices is not None:
            start = get_rank() * self.number
            return iter(self.indices[start : start + self.number])
        # again from the beginning if there are fewer items
        repeated = itertools.chain.from_iterable(itertools.repeat(self.sampler))
        return itertools.islice(repeated, self.number)

    def __len__(self) -> int:
        """Return the length of the sampler that is limited: schedules depend on it."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: every epoch has the same items."""


def limit(
    loader: Config, number: int, indices: Sequence[int] | None, scope: str | None = None
) -> None:
    """Limit a dataloader's config to a few items per process.

    Args:
        loader: Config of a dataloader. It is changed in place.
        number: Number of items in each process.
        indices: Items of all processes, see :class:`FewSamples`. They are not used with samplers
            that compose batches themselves.
        scope: The config's default scope.
    """
    own = class_of(loader['sampler'], MMENGINE_DATA_SAMPLERS, scope)
    plain = own in (DefaultSampler, InfiniteSampler)
    loader['sampler'] = dict(
        type='mmgcvit.FewSamples',
        sampler=loader['sampler'],
        number=number,
        indices=indices if plain else None,
    )


def worst_items(dataset: Dataset) -> dict[str, int]:
    """Return the indices of the largest image, the smallest, and the one with most instances.

    They are read from the ``width``, ``height`` and ``instances`` of the dataset's items, as in
    COCO files. Without these fields, the result is empty.
    """
    sizes: dict[int, int] = {}
    instances: dict[int, int] = {}
    try:
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            if 'width' not in info or 'height' not in info:
                return {}
            sizes[index] = info['width'] * info['height']
            instances[index] = len(info.get('instances', ()))
    except (AttributeError, KeyError, NotImplementedError, TypeError):
        return {}  # not a dataset of this format
    if not sizes:
        return {}
    return {
        'largest image': max(sizes, key=sizes.__getitem__),
        'most instances': max(instances, key=instances.__getitem__),
        'smallest image': min(sizes, key=sizes.__getitem__),
    }


def training_items(
    length: int, worst: Mapping[str, int], per_update: int, processes: int, updates: int
) -> list[int]:
    """Choose the items of a few updates.

    The first update of every process consists of the largest image and the one with most instances,
    so its memory is that of the worst batch. The second update starts with the smallest image. The
    other images are evenly spaced, so that the time is typical.

    Args:
        length: Number of items of the dataset.
        worst: See :func:`worst_items`.
        per_update: Items per update and process.
        processes: Number of processes.
        updates: Number of updates, at least 2.

    Returns:
        Indices of all processes, ``updates * per_update`` for each, in order of the ranks.
    """
    number = updates * per_update
    ordinary = itertools.cycle(evenly(length, number * processes))
    heavy = [index for name, index in worst.items() if name != 'smallest image']
    first = itertools.cycle(heavy) if heavy else ordinary
    chosen: list[int] = []
    for _ in range(processes):
        chosen += itertools.islice(first, per_update)
        chosen += [worst['smallest image']] if worst else []
        chosen += itertools.islice(ordinary, number - per_update - bool(worst))
    return chosen


def some_items(length: int, worst: Mapping[str, int], number: int) -> list[int]:
    """Choose items to load: the worst ones and evenly spaced ones, at least ``number`` if any."""
    indices = [*worst.values(), *evenly(length, number)]
    return list(dict.fromkeys(indices))


def load(loader: DataLoader, indices: Sequence[int], option: str) -> None:
    """Load items through a dataset's pipeline, and collate them as the dataloader does.

    Args:
        loader: Dataloader. Its workers are not used.
        indices: Items to load.
        option: Name of the dataloader in the config, for messages.

    Raises:
        UserError: If an item cannot be loaded. The message names the file and the transform.
    """
    name_failing_images(loader.dataset)
    items = []
    for index in indices:
        try:
            items.append(loader.dataset[index])
        except Exception as error:
            where = f'{option} (item {index}, {place(error.__cause__ or error)})'
            named = isinstance(error, UserError)  # it names image, transform and remedy
            reason = error if named else f'{describe(error)}: correct {option}.dataset'
            raise UserError(f'{where}: {reason}') from error
    size = getattr(loader.batch_sampler, 'batch_size', None) or 1
    for start in range(0, len(items), size):
        call(partial(loader.collate_fn, items[start : start + size]), f'{option}: batch')


def call(function: Callable[[], Any], what: str) -> Any:
    """Call a function; any exception becomes a UserError that begins with ``what``."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{what}: {describe(error)} ({place(error)})') from error
