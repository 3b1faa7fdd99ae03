"""Access to wrapped datasets (repeated, concatenated, mixed), their configs and wrapped models."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn


def dataset_configs(dataset: Any, option: str) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """Yield the place and the config of every dataset that is not a wrapper.

    Args:
        dataset: Config of a dataset or of a wrapper. For anything else, nothing is yielded.
        option: Its place in the config.
    """
    if not isinstance(dataset, MutableMapping):
        return
    if dataset.get('datasets'):
        for number, part in enumerate(dataset['datasets']):
            yield from dataset_configs(part, f'{option}.datasets.{number}')
    elif isinstance(dataset.get('dataset'), Mapping):
        yield from dataset_configs(dataset['dataset'], f'{option}.dataset')
    else:
        yield option, dataset


def datasets_of(dataset: Any) -> Iterator[Any]:
    """Yield a dataset and all datasets that it wraps, the innermost first."""
    for part in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if part is not None:
            yield from datasets_of(part)
    yield dataset


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without the wrappers that distribute it."""
    while is_model_wrapper(model):
        model = model.module
    return model
