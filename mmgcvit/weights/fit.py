"""Fitting a checkpoint to a model: what is taken, resized, adapted, left and dropped."""

import inspect
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import UserError
from ..models.gcvit import resize_bias_tables
from .checkpoint import (
    EMA_KEYS,
    Checkpoint,
    Size,
    add,
    open_checkpoint,
    require_finite,
    sample,
    shapes_of,
)
from .layouts import (
    LAYOUTS,
    OUTER_WRAPPERS,
    State,
    find_backbones,
    is_of_backbone,
    is_of_wrappers,
    network_of,
    without_inner_wrappers,
)

Shapes = Mapping[str, tuple[int, ...]]
BACKBONE = 'backbone.'
STEM = f'{BACKBONE}stem.conv.weight'


@dataclass(frozen=True)
class Fit:
    """What becomes of the tensors of a file and of a model.

    Attributes:
        tensors: What is to be copied into the model, by the model's own names.
        resized: Names in the model of position bias tables that came from windows of another size.
        adapted: Names of weights that came from another number of input channels.
        initial: Names in the model that keep their initial value.
        refused: Those of them that the file has in another size.
        dropped: Names of the file's tensors that the model has no use for.
    """

    tensors: State
    resized: tuple[str, ...]
    adapted: tuple[str, ...]
    initial: tuple[str, ...]
    refused: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def taken(self) -> tuple[str, ...]:
        """Names in the model of tensors that come from the file, resized ones among them."""
        return tuple(self.tensors)

    def __str__(self) -> str:
        adapted = f'; {", ".join(self.adapted)} adapted to the input channels'
        refused = f', {len(self.refused)} of them of another size in the file'
        names = f' ({", ".join(self.initial)})' if 0 < len(self.initial) < 10 else ''
        return (
            f'{len(self.taken)} tensors taken, {len(self.resized)} of them resized to other '
            f'windows{adapted if self.adapted else ""}; {len(self.initial)} left at their initial '
            f'value{names}{refused if self.refused else ""}; {len(self.dropped)} of the file '
            'dropped'
        )


class _Target:
    """A model's names and shapes, by the names that they have in a checkpoint.

    There a GC ViT backbone is under ``backbone.``, and the rest of the network beside it.
    """

    def __init__(self, shapes: Shapes) -> None:
        names = {without_inner_wrappers(name): name for name in shapes}
        ours = {'mmgcvit': LAYOUTS['mmgcvit']}
        places = [place for place, _ in find_backbones(names, ours) if is_of_wrappers(place)]
        self.has_gcvit = len(places) == 1
        if self.has_gcvit:
            names = {_in_network(name, places[0]): own for name, own in names.items()}
        if len(names) < len(shapes):  # two tensors differ in wrappers alone
            self.has_gcvit, names = False, {name: name for name in shapes}
        self.names = names
        self.shapes: Shapes = {name: tuple(shapes[names[name]]) for name in names}
        self.is_backbone = self.has_gcvit and all(name.startswith(BACKBONE) for name in names)
        # mmengine does not require these counts of batches either
        self.needed = [name for name in names if not name.endswith('num_batches_tracked')]

    @property
    def size(self) -> Size | None:
        named = {n.removeprefix(BACKBONE): s for n, s in self.of_gcvit.items()}
        return Size.of(named) if self.has_gcvit else None

    @property
    def of_gcvit(self) -> Shapes:
        """The shapes of the GC ViT backbone, none if there is none."""
        names = self.shapes if self.has_gcvit else ()
        return {name: self.shapes[name] for name in names if name.startswith(BACKBONE)}


def _in_network(name: str, place: str) -> str:
    """Return a name with ``backbone.`` for the place that the backbone has in the model."""
    if name.startswith(place) and is_of_backbone(name.removeprefix(place)):
        return BACKBONE + name.removeprefix(place)
    network = network_of(place)
    return name if network == place else name.removeprefix(network)


def fit(
    checkpoint: Checkpoint,
    shapes: Shapes,
    *,
    resize: bool = True,
    adapt_input: bool = False,
    heads_may_differ: bool = False,
) -> Fit:
    """Fit a checkpoint to a backbone, or to a network with or without a GC ViT backbone.

    Args:
        checkpoint: What is loaded.
        shapes: Names and shapes of the model's tensors. The names may be those of modules that are
            compiled or wrapped in memory.
        resize: Resize position bias tables (bicubic) to windows of another size.
        adapt_input: Fit the stem's filters to another number of input channels, see
            :func:`adapt_filters`.
        heads_may_differ: Whether tensors of heads may have another size or be missing. They keep
            their initial values.

    Raises:
        UserError: If a tensor is missing, has another shape, or holds NaN or infinity. Only the
            norms of the first three outputs of a backbone may be missing, as classifiers do not
            have them.
    """
    target = _Target(shapes)
    offered = _offered(checkpoint, target)
    _require_backbone(checkpoint, target)
    try:
        resized = resize_bias_tables(offered, target.of_gcvit) if resize else {}
    except ValueError as error:
        raise UserError(f'{checkpoint.source}: {error}') from error
    adapted = {}
    if adapt_input and _differ_in_channels(offered.get(STEM), target.shapes.get(STEM)):
        adapted = {STEM: adapt_filters(offered[STEM], target.shapes[STEM][1])}
    values = {**offered, **resized, **adapted}

    missing = [name for name in target.needed if name not in values]
    _require_network(checkpoint, target, missing)
    other = [n for n in target.needed if n in values and tuple(values[n].shape) != target.shapes[n]]
    refused: list[str] = []
    initial = list(missing)
    if heads_may_differ:
        refused = [name for name in other if _is_of_head(name)]
        initial = [name for name in target.needed if name in {*missing, *refused}]
        missing, other = ([n for n in names if not _is_of_head(n)] for names in (missing, other))
    if target.is_backbone:
        missing = [name for name in missing if not _may_be_missing(name, values)]
    _require_same(checkpoint, target, values, missing, other)

    tensors = {n: values[n] for n in target.names if n in values and n not in refused}
    for name, tensor in tensors.items():
        # the backbone's own tensors were checked when they were sorted
        if checkpoint.backbone.get(name.removeprefix(BACKBONE)) is not tensor:
            require_finite(target.names[name], tensor, checkpoint.source)
    dropped = [name for name in offered if name not in target.names]
    return Fit(
        {target.names[name]: tensor for name, tensor in tensors.items()},
        *(tuple(target.names[n] for n in names) for names in (resized, adapted, initial, refused)),
        dropped=tuple(dropped),
    )


def _offered(checkpoint: Checkpoint, target: _Target) -> State:
    """Return a checkpoint's tensors by the names that the target would have for them."""
    offered = {f'{BACKBONE}{name}': tensor for name, tensor in checkpoint.backbone.items()}
    # what is beside the backbone may be a part of the model all the same
    for name, tensor in (*checkpoint.others.items(), *checkpoint.unused.items()):
        found = name
        while found not in target.names and found.partition('.')[0] in OUTER_WRAPPERS:
            found = found.partition('.')[2]
        add(offered, found if found in target.names else name, tensor, checkpoint.source, name)
    return offered


def _require_backbone(checkpoint: Checkpoint, target: _Target) -> None:
    """Refuse a file without a backbone for a model that is one, or a backbone of another size."""
    source, backbone = checkpoint.source, checkpoint.backbone
    if not target.is_backbone:
        return
    if checkpoint.layout is None and checkpoint.prefixes:
        raise UserError(
            f'{source} holds GC ViT backbones under other names: choose one with '
            + ' or '.join(f'prefix={prefix!r}' for prefix in checkpoint.prefixes[:4])
        )
    if checkpoint.layout is None:
        raise UserError(
            f'{source} holds no GC ViT backbone: it has names like {sample(checkpoint.others)}, '
            f'the backbone like {sample(target.names.values())}; give a file in the layout of '
            'NVIDIA, timm or mmgcvit, and the prefix of the backbone if it is a part of a larger '
            'model'
        )
    found, wanted = checkpoint.size, target.size
    if found is None or (found.fits(wanted) and len(found.depths) < len(wanted.depths)):
        raise UserError(
            f'{source} holds a part of a GC ViT backbone only, {len(backbone)} tensors of '
            f'{len(target.names)} in the model: give a complete file, or build the model with the '
            'out_indices of the stages that the file has'
        )
    if not found.fits(wanted):
        raise _misfit(checkpoint, target, _sizes(checkpoint, target))


def _require_network(checkpoint: Checkpoint, target: _Target, missing: list[str]) -> None:
    """Refuse a file without anything of the network around the backbone."""
    absent = set(missing)
    rest = {name for name in target.needed if not name.startswith(BACKBONE)}
    if target.is_backbone or not absent or not rest <= absent:
        return
    amount = 'none' if len(absent) == len(target.needed) else 'the backbone alone'
    raise UserError(
        f'{checkpoint.source} holds {amount} of the tensors of the model; it has names like '
        f'{sample({**checkpoint.backbone, **checkpoint.others})}, the model like '
        f'{sample(target.names.values())}: give a checkpoint of this config; weights of a backbone '
        'alone go to model.backbone.init_cfg'
    )


def _require_same(
    checkpoint: Checkpoint, target: _Target, values: State, missing: list[str], other: list[str]
) -> None:
    """Refuse a file in which tensors are missing or have another size."""
    sizes = _sizes(checkpoint, target)
    if other:
        name = other[0]
        number = '1 tensor differs' if len(other) == 1 else f'{len(other)} tensors differ'
        reason = (
            f'{number} in size: {target.names[name]} has shape {tuple(values[name].shape)}, the '
            f'model needs {target.shapes[name]}'
        )
        raise _misfit(checkpoint, target, f'{reason}; {sizes}' if sizes else reason, name)
    if missing:
        names = sample(target.names[name] for name in missing)
        number = f'{len(missing)} of {len(target.needed)} tensors'
        reason = f'{number} are not in the file: {names}'
        raise _misfit(checkpoint, target, f'{reason}; {sizes}' if sizes else reason)


def _misfit(checkpoint: Checkpoint, target: _Target, reason: str, name: str = '') -> UserError:
    remedy = (
        'give a complete file of the arch that the model has, or choose the arch that the file was '
        'trained with'
        if target.is_backbone
        else 'give the config that it was trained with, or a checkpoint of this one'
    )
    if name == STEM:
        remedy = (
            'set adapt_input=True in the init_cfg of the backbone to fit the filters to these '
            'channels, or choose in_channels that the file was trained with'
        )
    elif '.attn.qkv.' in name and target.has_gcvit:
        remedy = 'choose attention_types that the file was trained with'
    return UserError(f'{checkpoint.source} is of another model: {reason}: {remedy}')


def _sizes(checkpoint: Checkpoint, target: _Target) -> str:
    """Return the sizes of both backbones if they are known to differ."""
    found, wanted = checkpoint.size, target.size
    if found is None or wanted is None or found.fits(wanted):
        return ''
    return f'it is GC ViT {found}, and the model is {wanted}'


def _is_of_head(name: str) -> bool:
    return 'head' in name.partition('.')[0]


def _may_be_missing(name: str, values: State) -> bool:
    norm = re.match(rf'{BACKBONE}norm[012]\.', name)
    return bool(norm) and not any(other.startswith(norm[0]) for other in values)


def _differ_in_channels(filters: Tensor | None, shape: tuple[int, ...] | None) -> bool:
    if filters is None or shape is None or filters.dim() != 4:
        return False
    return filters.shape[1] != shape[1]


def adapt_filters(filters: Tensor, in_channels: int) -> Tensor:
    """Fit the filters of a first convolution to another number of input channels.

    As in timm: one channel gets the sum over the file's channels. For another number m these are
    repeated in order and scaled by n / m, which keeps the size of the outputs.

    Args:
        filters: (C, n, h, w).
        in_channels: Channels m of the model.

    Returns:
        (C, m, h, w), of the same dtype.
    """
    known = filters.shape[1]
    summable = filters.float()  # half precision is summed in single precision
    if in_channels == 1:
        return summable.sum(1, keepdim=True).to(filters.dtype)
    repeated = summable.repeat(1, -(-in_channels // known), 1, 1)[:, :in_channels]
    return (repeated * (known / in_channels)).to(filters.dtype)


def report(checkpoint: Checkpoint, fitted: Fit) -> None:
    """Log what became of a checkpoint's tensors, and the licence of what was loaded."""
    layout = f' in the layout of {checkpoint.layout}' if checkpoint.layout else ''
    print_log(f'weights of {checkpoint.source}{layout}: {fitted}', logger='current')
    beside = [key for key in EMA_KEYS if key in checkpoint.beside]
    if beside and not checkpoint.averaged:
        print_log(
            f'{checkpoint.source} has averaged weights, too, under {beside[0]}: ema=True in '
            'init_cfg takes them instead',
            logger='current',
        )
    if checkpoint.licence:
        print_log(f'licence of {checkpoint.source}: {checkpoint.licence}', logger='current')


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    ema: bool = False,
    sha256: str | None = None,
    adapt_input: bool = False,
) -> Fit:
    """Load a backbone's weights from a file in any known layout, and log what became of them.

    ``init_cfg=dict(type='Pretrained', ...)`` of :class:`mmgcvit.GCViT` has these arguments, too.

    Args:
        model: Backbone.
        checkpoint: Path or URL, see :func:`mmgcvit.weights.fetch`.
        prefix: What the names of the backbone, or of the network that it is a part of, begin with,
            for a part of a larger model. Any combination of ``module.``, ``model.``, ``net.``,
            ``ema.``, ``backbone.`` and the names that torch.compile and FSDP add is found without.
        ema: Take the weights averaged over the training (exponential moving average) that are
            beside the others in NVIDIA's and timm's training checkpoints.
        sha256: Digest that the file must have, 64 hexadecimal digits.
        adapt_input: Fit the stem's filters to ``in_channels`` other than 3, see
            :func:`adapt_filters`.

    Raises:
        UserError: If the file is not available or readable, or does not fit the model. The model is
            unchanged then.
    """
    return load_checkpoint(model, open_checkpoint(checkpoint, prefix, ema, sha256), adapt_input)


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint, adapt_input: bool = False) -> Fit:
    """Copy a checkpoint's tensors into a backbone; see :func:`load_pretrained`."""
    targets = model.state_dict()
    fitted = fit(checkpoint, shapes_of(targets), adapt_input=adapt_input)
    values = {}
    for name, tensor in fitted.tensors.items():
        values[name] = tensor.to(targets[name].dtype)
        if tensor.dtype != targets[name].dtype:
            require_finite(f'{name} as {targets[name].dtype}', values[name], checkpoint.source)
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    report(checkpoint, fitted)
    return fitted


def load_init_cfg(model: nn.Module, init_cfg: Mapping[str, Any]) -> Fit:
    """Load the weights that a Pretrained ``init_cfg`` names.

    Raises:
        UserError: As of :func:`load_pretrained`, or if there is an unknown key or value.
    """
    arguments = {key: value for key, value in init_cfg.items() if key != 'type'}
    known = list(inspect.signature(load_pretrained).parameters)[1:]
    switches = (arguments.get(key, False) for key in ('ema', 'adapt_input'))
    if (
        'checkpoint' not in arguments
        or not set(arguments) <= set(known)
        or not all(isinstance(switch, bool) for switch in switches)
    ):
        raise UserError(
            f'init_cfg={init_cfg!r} is not allowed: besides type=Pretrained, give checkpoint (a '
            'path or URL) and, where needed, prefix (of a backbone that is a part of a larger '
            'model), ema=True (averaged weights), sha256 and adapt_input=True (in_channels other '
            'than 3)'
        )
    return load_pretrained(model, **arguments)
