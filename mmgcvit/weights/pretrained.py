"""Loading weights of any known layout into a backbone, with a report of what became of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .errors import WeightsError
from .files import fetch, read_checkpoint
from .layouts import to_own
from .tables import resize_bias_table


@dataclass
class LoadReport:
    """What became of the tensors of a file and of a model, by name.

    Attributes:
        taken: Tensors of the model that come from the file, resized ones among them.
        resized: Position bias tables that came from windows of another size.
        initial: Tensors of the model that the file does not hold.
        dropped: Tensors of the file that the model has no use for.
    """

    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        names = f' ({", ".join(self.initial)})' if 0 < len(self.initial) < 10 else ''
        return (
            f'{len(self.taken)} tensors taken, {len(self.resized)} of them resized to other '
            f'windows; {len(self.initial)} left at their initial value{names}; '
            f'{len(self.dropped)} of the file dropped'
        )


def load_pretrained(
    model: nn.Module, checkpoint: str | os.PathLike, prefix: str | None = None
) -> LoadReport:
    """Load a backbone's weights from a file in any known layout and log one line about it.

    Args:
        model: Backbone.
        checkpoint: Path or URL.
        prefix: Take only the file's tensors whose names start so, without that start. By default
            ``module.`` and ``backbone.`` are found by themselves.

    Raises:
        WeightsError: If the file cannot be had or read, or does not fit the model. The model is
            unchanged then.
    """
    state = _state_dict(read_checkpoint(fetch(checkpoint)), str(checkpoint))
    report = load_weights(model, _strip_prefix(state, prefix, str(checkpoint)), str(checkpoint))
    print_log(f'{type(model).__name__} weights of {checkpoint}: {report}', logger='current')
    return report


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy the tensors of a state dict, in any known layout, into a model.

    Args:
        model: Backbone.
        state: Names and tensors, without a prefix.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If less than half of the model's tensors are there or one has another shape
            than it must have. The model is unchanged then.
    """
    # the same names and tensors whichever layout they came in
    state = to_own(state)
    targets = model.state_dict()
    report = LoadReport()
    values = {}
    for name, target in targets.items():
        if name not in state:
            report.initial.append(name)
            continue
        value = state[name]
        if name.endswith('.relative_position_bias_table') and value.shape[:1] != target.shape[:1]:
            value = resize_bias_table(value, len(target))
            report.resized.append(name)
        if value.shape != target.shape:
            raise WeightsError(
                f'{source} does not fit the model: {name} has shape {tuple(value.shape)}, the '
                f'model needs {tuple(target.shape)}; choose the arch that the file was trained '
                'with'
            )
        values[name] = value
        report.taken.append(name)
    report.dropped.extend(name for name in state if name not in targets)
    if 2 * len(values) < len(targets):
        raise WeightsError(
            f'only {len(values)} of the {len(targets)} tensors of the backbone are in {source}: '
            f'the file has names like {_sample(state)}, the backbone like {_sample(targets)}; give '
            'a GC ViT file in the layout of NVIDIA, timm or mmgcvit, and the prefix of the '
            'backbone where it is a part of a larger model'
        )
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return report


def _state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Return the names and tensors of a checkpoint, which may hold other things beside them."""
    if isinstance(content, Mapping):
        for key in ('state_dict', 'model'):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise WeightsError(
        f'{source} holds no tensors: a weights file is a dict of names and tensors, by itself or '
        "under 'state_dict' or 'model'"
    )


def _strip_prefix(
    state: Mapping[str, Tensor], prefix: str | None, source: str
) -> dict[str, Tensor]:
    if prefix is not None:
        part = _below(state, prefix if prefix.endswith('.') else f'{prefix}.')
        if not part:
            raise WeightsError(
                f'prefix={prefix!r} fits none of the names in {source}, which are like '
                f'{_sample(state)}'
            )
        return part
    state = _below(state, 'module.') or state
    return _below(state, 'backbone.') or dict(state)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _sample(state: Mapping[str, Tensor]) -> str:
    return ', '.join(list(state)[:3]) or 'none at all'
