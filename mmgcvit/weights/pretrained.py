"""Loading weights of any known layout into a backbone, with a report of what became of them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import UserError
from .addresses import public_name
from .contents import (
    EMA_KEYS,
    Contents,
    is_index,
    require_finite,
    sample,
    sort_tensors,
    tensors_of,
)
from .reading import read_checkpoint
from .sizes import infer_sizes
from .sources import fetch
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
    model: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    ema: bool = False,
    sha256: str | None = None,
) -> LoadReport:
    """Load a backbone's weights from a file in any known layout and log one line about it.

    Args:
        model: Backbone.
        checkpoint: Path or URL, see :func:`mmgcvit.weights.fetch`.
        prefix: Take only the file's tensors whose names start so, without that start. By default
            ``module.`` and ``backbone.`` are found by themselves.
        ema: Take the weights averaged over the training (exponential moving average) that are
            beside the others in NVIDIA's and timm's training checkpoints.
        sha256: Digest that the file must have, 64 hexadecimal digits.

    Raises:
        UserError: If the file cannot be had or read, or does not fit the model. The model is
            unchanged then.
    """
    content = read_checkpoint(fetch(checkpoint, sha256))
    source = public_name(str(checkpoint))
    contents = sort_tensors(tensors_of(content, source, ema), source, prefix)
    report = _load(model, contents, source)
    print_log(f'{type(model).__name__} weights of {source}: {report}', logger='current')
    beside = [key for key in EMA_KEYS if isinstance(content, Mapping) and key in content]
    if beside and not ema:
        print_log(
            f'{source} has averaged weights, too, under {beside[0]}: ema=True in init_cfg takes '
            'them instead',
            logger='current',
        )
    return report


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy the tensors of a state dict, in any known layout, into a backbone.

    Args:
        model: Backbone.
        state: Names and tensors.
        source: Where they come from, for messages.

    Raises:
        UserError: If a tensor is missing, but for the norms of the first three outputs, has
            another shape than it must have or holds NaN or infinity. The model is unchanged then.
    """
    return _load(model, sort_tensors(state, source), source)


def _load(model: nn.Module, contents: Contents, source: str) -> LoadReport:
    targets = model.state_dict()
    _check_sizes(contents, targets, source)
    report = LoadReport(dropped=[*contents.others, *contents.dropped])
    shapes = {name: tuple(target.shape) for name, target in targets.items()}
    values = fit_tables(contents.backbone, shapes, report.resized, source)
    report.dropped.extend(name for name in values if name not in targets)
    for name, target in targets.items():
        value = values.get(name)
        if value is None:
            report.initial.append(name)
            continue
        if value.shape != target.shape:
            advice = 'in_channels' if name == 'stem.conv.weight' else 'the arch'
            if '.attn.qkv.' in name:
                advice = 'attention_types'
            raise UserError(
                f'{source} does not fit the model: {name} has shape {tuple(value.shape)}, the '
                f'model needs {tuple(target.shape)}; choose {advice} that the file was trained with'
            )
        if value.dtype != target.dtype:
            values[name] = value.to(target.dtype)
            require_finite(f'{name} as {target.dtype}', values[name], source)
        report.taken.append(name)
    # classifiers have no norms of other outputs than the last
    missing = [name for name in report.initial if not _may_be_missing(name, values)]
    if missing:
        raise UserError(
            f'{len(missing)} of the {len(targets)} tensors of the backbone are not in {source}, as '
            f'{", ".join(missing[:3])}: give a whole GC ViT file'
        )
    with torch.no_grad():
        for name in report.taken:
            targets[name].copy_(values[name])
    return report


def _may_be_missing(name: str, values: Mapping[str, Tensor]) -> bool:
    norm = re.match(r'norm[012]\.', name)
    return bool(norm) and not any(other.startswith(norm[0]) for other in values)


def adapt_network(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
    resize: bool,
) -> dict[str, Tensor] | None:
    """Give the GC ViT backbone of a detector or segmentor the names and tables of a model.

    Those published for mmdet 2 have NVIDIA's names in it.

    Args:
        state: Names and tensors of the whole network, the backbone's beginning with ``backbone.``.
        shapes: Names and shapes of the model's tensors.
        source: Where they come from, for messages.
        resize: Whether position bias tables of other windows are resized.

    Returns:
        Names and tensors; None if there is nothing to adapt.

    Raises:
        UserError: If the backbone's tensors are no weights, or a table belongs to no window.
    """
    if not any(name.startswith(('backbone.', 'module.backbone.')) for name in state):
        return None
    contents = sort_tensors(state, source)
    if contents.layout is None:
        return None
    resized: list[str] = []
    own = {n.removeprefix('backbone.'): s for n, s in shapes.items() if n.startswith('backbone.')}
    backbone = contents.backbone
    if resize:
        backbone = fit_tables(backbone, own, resized, source)
    if contents.layout == 'mmgcvit' and not resized:
        return None
    print_log(
        f'{source}: the backbone has the names of {contents.layout}, {len(resized)} position bias '
        'tables were resized to other windows',
        logger='current',
    )
    unknown = {name: state[name] for name in contents.dropped if not is_index(name)}
    return {**{f'backbone.{name}': t for name, t in backbone.items()}, **contents.others, **unknown}


def fit_tables(
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    resized: list[str],
    source: str,
) -> dict[str, Tensor]:
    """Resize the position bias tables that a model has for windows of another size.

    Args:
        state: Names and tensors of a backbone.
        shapes: Names and shapes of the model's tensors.
        resized: Gets the names of the tables that were resized.
        source: Where they come from, for messages.

    Raises:
        UserError: If a table belongs to no window.
    """
    fitted = dict(state)
    for name, shape in shapes.items():
        table = state.get(name)
        is_table = name.endswith('.relative_position_bias_table') and table is not None
        if is_table and table.shape[:1] != shape[:1]:
            try:
                fitted[name] = resize_bias_table(table, shape[0])
            except UserError as error:
                raise UserError(f'{source}: {name}: {error}') from error
            resized.append(name)
    return fitted


def _check_sizes(contents: Contents, targets: Mapping[str, Tensor], source: str) -> None:
    if contents.layout is None:
        raise UserError(
            f'{source} holds no GC ViT backbone: it has names like {sample(contents.dropped)}, the '
            f'backbone like {sample(targets)}; give a file in the layout of NVIDIA, timm or '
            'mmgcvit, and the prefix of the backbone where it is a part of a larger model'
        )
    found, wanted = infer_sizes(contents.backbone), infer_sizes(targets)
    if found is None or (found.fits(wanted) and len(found.depths) < len(wanted.depths)):
        raise UserError(
            f'{source} holds a part of a GC ViT backbone only, {len(contents.backbone)} tensors of '
            f'it, where the model has {len(targets)}: give a whole file, or build the model with '
            'the out_indices of the stages that are there'
        )
    if not found.fits(wanted):
        raise UserError(
            f'{source} is GC ViT {found}, and the model is {wanted}: choose the arch that the file '
            'was trained with, or the file of this arch'
        )
