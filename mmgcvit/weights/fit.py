"""Fitting a checkpoint to a model: which tensors are loaded, resized, adapted or ignored."""

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import UserError
from ..optional_mmengine import print_log
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
    """Result of matching the tensors of a checkpoint to those of a model.

    Attributes:
        tensors: Tensors to copy into the model, under the model's names.
        resized: Names in the model of position bias tables resized from different window sizes.
        adapted: Names in the model of weights adapted from a different number of input channels.
        initial: Names in the model of tensors that keep their initial values.
        refused: Names in ``initial`` whose tensors in the checkpoint have a mismatched shape.
        dropped: Names in the checkpoint of tensors that the model does not have.
    """

    tensors: State
    resized: tuple[str, ...]
    adapted: tuple[str, ...]
    initial: tuple[str, ...]
    refused: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def taken(self) -> tuple[str, ...]:
        """Names in the model of the loaded tensors, including resized ones."""
        return tuple(self.tensors)

    def __str__(self) -> str:
        adapted = f'; {", ".join(self.adapted)} adapted to the input channels'
        refused = f' ({len(self.refused)} with mismatched shape)'
        names = f': {", ".join(self.initial)}' if 0 < len(self.initial) < 10 else ''
        return (
            f'loaded {len(self.taken)} tensors ({len(self.resized)} resized to the window sizes of '
            f'the model){adapted if self.adapted else ""}; {len(self.initial)} kept at '
            f'initialization{refused if self.refused else ""}{names}; {len(self.dropped)} '
            'unexpected tensors ignored'
        )


class _Target:
    """A model's names and shapes, under the names used in a :class:`Checkpoint`.

    A GC ViT backbone has the prefix ``backbone.`` there, and the rest of the network no prefix.
    """

    def __init__(self, shapes: Shapes) -> None:
        names = {without_inner_wrappers(name): name for name in shapes}
        ours = {'mmgcvit': LAYOUTS['mmgcvit']}
        places = [place for place, _ in find_backbones(names, ours) if is_of_wrappers(place)]
        self.has_gcvit = len(places) == 1
        if self.has_gcvit:
            names = {_in_network(name, places[0]): own for name, own in names.items()}
        if len(names) < len(shapes):  # two names differ only in wrappers
            self.has_gcvit, names = False, {name: name for name in shapes}
        self.names = names
        self.shapes: Shapes = {name: tuple(shapes[names[name]]) for name in names}
        self.is_backbone = self.has_gcvit and all(name.startswith(BACKBONE) for name in names)
        # BatchNorm's counters may be missing, as in mmengine
        self.needed = [name for name in names if not name.endswith('num_batches_tracked')]

    @property
    def size(self) -> Size | None:
        named = {n.removeprefix(BACKBONE): s for n, s in self.of_gcvit.items()}
        return Size.of(named) if self.has_gcvit else None

    @property
    def of_gcvit(self) -> Shapes:
        """Shapes of the GC ViT backbone, empty if the model has none."""
        names = self.shapes if self.has_gcvit else ()
        return {name: self.shapes[name] for name in names if name.startswith(BACKBONE)}


def _in_network(name: str, place: str) -> str:
    """Return a name with ``backbone.`` instead of the backbone's prefix in the model."""
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
        checkpoint: Checkpoint to load.
        shapes: Names and shapes of the model's tensors. The names may contain the prefixes of
            modules that are compiled or wrapped in memory.
        resize: Resize position bias tables (bicubic) to the window sizes of the model.
        adapt_input: Adapt the stem's filters to a different number of input channels, see
            :func:`adapt_filters`.
        heads_may_differ: Whether tensors of heads may be missing or have mismatched shapes. These
            tensors keep their initial values.

    Raises:
        UserError: If a tensor is missing, has a mismatched shape, or contains NaN or infinity. Only
            the norms of the first three outputs of a backbone may be missing, because classifiers
            do not have them.
    """
    target = _Target(shapes)
    offered = _offered(checkpoint, target)
    _require_backbone(checkpoint, target)
    try:
        resized = ops.resize_bias_tables(offered, target.of_gcvit) if resize else {}
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
        # Checkpoint.from_state has already checked the backbone's tensors
        if checkpoint.backbone.get(name.removeprefix(BACKBONE)) is not tensor:
            require_finite(target.names[name], tensor, checkpoint.source)
    dropped = [name for name in offered if name not in target.names]

    def in_model(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(target.names[name] for name in names)

    return Fit(
        {target.names[name]: tensor for name, tensor in tensors.items()},
        in_model(resized),
        in_model(adapted),
        in_model(initial),
        in_model(refused),
        tuple(dropped),
    )


def _offered(checkpoint: Checkpoint, target: _Target) -> State:
    """Return a checkpoint's tensors under the names that the target uses for them."""
    offered = {f'{BACKBONE}{name}': tensor for name, tensor in checkpoint.backbone.items()}
    # other tensors may belong to the model, with or without the prefixes of wrappers
    for name, tensor in (*checkpoint.others.items(), *checkpoint.unused.items()):
        found = name
        while found not in target.names and found.partition('.')[0] in OUTER_WRAPPERS:
            found = found.partition('.')[2]
        add(offered, found if found in target.names else name, tensor, checkpoint.source, name)
    return offered


def _require_backbone(checkpoint: Checkpoint, target: _Target) -> None:
    """Reject a file with no backbone, or one of a different size, if the model is a backbone."""
    source, backbone = checkpoint.source, checkpoint.backbone
    if not target.is_backbone:
        return
    checkpoint.require_backbone()
    found, wanted = checkpoint.size, target.size
    assert wanted is not None  # the size of a built backbone
    if found is None or (found.fits(wanted) and len(found.depths) < len(wanted.depths)):
        raise UserError(
            f'{source} contains only part of a GC ViT backbone, {len(backbone)} tensors of '
            f'{len(target.names)} in the model: use a complete file, or build the model with '
            'out_indices for the stages in the file'
        )
    if not found.fits(wanted):
        raise _misfit(checkpoint, target, _sizes(checkpoint, target))


def _require_network(checkpoint: Checkpoint, target: _Target, missing: list[str]) -> None:
    """Reject a file that has no tensor of the network around the backbone."""
    absent = set(missing)
    rest = [name for name in target.needed if not name.startswith(BACKBONE)]
    if target.is_backbone or not absent or not absent.issuperset(rest):
        return
    amount = 'the backbone but not the rest'
    if len(absent) == len(target.needed):
        amount = 'none of the tensors'
    elif not checkpoint.others:
        amount = 'only the backbone'
    raise UserError(
        f'{checkpoint.source} contains {amount} of the model; it has names like '
        f'{sample(checkpoint.names)}, and the model has names like '
        f'{sample(target.names[name] for name in rest)}: use a checkpoint of this config; for '
        'backbone weights use model.backbone.init_cfg'
    )


def _require_same(
    checkpoint: Checkpoint, target: _Target, values: State, missing: list[str], other: list[str]
) -> None:
    """Reject a file in which tensors are missing or have mismatched shapes."""
    sizes = _sizes(checkpoint, target)
    if other:
        name = other[0]
        is_wider = name == STEM and not _differ_in_channels(values[name], target.shapes[name])
        number = f'{len(other)} tensors have mismatched shapes'
        if len(other) == 1:
            number = '1 tensor has a mismatched shape'
        reason = (
            f'{number}: {target.names[name]} has shape {tuple(values[name].shape)}, '
            f'expected {target.shapes[name]}'
        )
        reason = f'{reason}; {sizes}' if sizes else reason
        raise _misfit(checkpoint, target, reason, '' if is_wider else name)
    if missing:
        names = sample(target.names[name] for name in missing)
        number = f'{len(missing)} of {len(target.needed)} tensors'
        reason = f'{number} are missing from the file: {names}'
        raise _misfit(checkpoint, target, f'{reason}; {sizes}' if sizes else reason)


def _misfit(checkpoint: Checkpoint, target: _Target, reason: str, name: str = '') -> UserError:
    remedy = (
        "use a complete file of the model's arch, or set arch to the one that the file was trained "
        'with'
        if target.is_backbone
        else 'use the config that it was trained with, or a checkpoint of this config'
    )
    if name == STEM and target.is_backbone:
        remedy = (
            'set adapt_input=True in the init_cfg of the backbone, or where the file is loaded, to '
            'adapt the filters, or set in_channels to the number that the file was trained with'
        )
    elif name == STEM:
        remedy = (
            'set in_channels to the number that the file was trained with. To start training with '
            'other channels, load only the backbone: instead of load_from, use '
            "model.backbone.init_cfg=dict(type='Pretrained', "
            f'checkpoint={checkpoint.source!r}, adapt_input=True)'
        )
    elif '.attn.qkv.' in name and target.has_gcvit:
        remedy = (
            'set attention_types to those that the file was trained with, or for GCViTVariant, its '
            'variant'
        )
    return UserError(f'{checkpoint.source} does not match the model: {reason}: {remedy}')


def _sizes(checkpoint: Checkpoint, target: _Target) -> str:
    """Describe the sizes of both backbones, or return an empty string if they do not differ."""
    found, wanted = checkpoint.size, target.size
    if found is None or wanted is None or found.fits(wanted):
        return ''
    return f'the file is GC ViT {found}, the model is GC ViT {wanted}'


def _is_of_head(name: str) -> bool:
    return 'head' in name.partition('.')[0]


def _may_be_missing(name: str, values: State) -> bool:
    norm = re.match(rf'{BACKBONE}norm[012]\.', name)
    return norm is not None and not any(other.startswith(norm[0]) for other in values)


def _differ_in_channels(filters: Tensor | None, shape: tuple[int, ...] | None) -> bool:
    if filters is None or shape is None or filters.dim() != 4:
        return False
    return filters.shape[1] != shape[1]


def adapt_filters(filters: Tensor, in_channels: int) -> Tensor:
    """Adapt the filters of a first convolution to a different number of input channels.

    This is timm's method. A single channel gets the sum over the channels of the file. Otherwise,
    the n channels of the file are repeated in order up to m channels and scaled by n / m, which
    preserves the scale of the outputs.

    Args:
        filters: (C, n, h, w).
        in_channels: Number m of the model's input channels.

    Returns:
        (C, m, h, w), of the same dtype.
    """
    known = filters.shape[1]
    summable = filters.float()  # sums are computed in single precision
    if in_channels == 1:
        return summable.sum(1, keepdim=True).to(filters.dtype)
    repeated = summable.repeat(1, -(-in_channels // known), 1, 1)[:, :in_channels]
    return (repeated * (known / in_channels)).to(filters.dtype)


def report(checkpoint: Checkpoint, fitted: Fit) -> None:
    """Log how a checkpoint was matched to a model, and the license of its weights."""
    layout = f' ({checkpoint.layout} layout)' if checkpoint.layout else ''
    print_log(f'weights of {checkpoint.source}{layout}: {fitted}', logger='current')
    ema_keys = [key for key in EMA_KEYS if key in checkpoint.other_keys]
    if ema_keys and not checkpoint.is_ema:
        print_log(
            f'{checkpoint.source} also contains EMA weights ({ema_keys[0]}); set ema=True in '
            'init_cfg to use them',
            logger='current',
        )
    if checkpoint.license:
        print_log(f'license of {checkpoint.source}: {checkpoint.license}', logger='current')


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    ema: bool = False,
    sha256: str | None = None,
    adapt_input: bool = False,
) -> Fit:
    """Load a backbone's weights from a file in any known layout, and log a summary.

    ``init_cfg=dict(type='Pretrained', ...)`` of :class:`mmgcvit.GCViT` accepts the same arguments.

    Args:
        model: Backbone.
        checkpoint: Path or URL, see :func:`mmgcvit.weights.fetch`.
        prefix: Prefix of the names of the backbone, or of a larger network that contains it. Not
            needed for combinations of ``module.``, ``model.``, ``net.``, ``ema.``, ``backbone.``
            and the prefixes that torch.compile, FSDP and Lightning add.
        ema: Use the EMA weights (exponential moving average), which NVIDIA's and timm's training
            checkpoints contain in addition to the regular ones.
        sha256: Expected SHA-256 of the file, 64 hexadecimal digits.
        adapt_input: Adapt the stem's filters to ``in_channels`` other than 3, see
            :func:`adapt_filters`.

    Returns:
        The result of matching the checkpoint to the model.

    Raises:
        UserError: If the file is not available or readable, or does not match the model. The model
            is not modified in this case.
    """
    return load_checkpoint(model, open_checkpoint(checkpoint, prefix, ema, sha256), adapt_input)


def load_checkpoint(
    model: nn.Module, checkpoint: Checkpoint, adapt_input: bool = False, resize: bool = True
) -> Fit:
    """Copy a checkpoint's tensors into a backbone or network, see :func:`load_pretrained`.

    Without ``resize``, position bias tables must have the window sizes of the model.
    """
    targets = model.state_dict()
    fitted = fit(checkpoint, shapes_of(targets), adapt_input=adapt_input, resize=resize)
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
    """Load the weights specified by a Pretrained ``init_cfg``.

    Raises:
        UserError: If a key or value is not allowed. See :func:`load_pretrained` for further errors.
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
            f'init_cfg={init_cfg!r} is not allowed: in addition to type=Pretrained, set checkpoint '
            '(a path or URL) and, if needed, prefix (if the backbone is part of a larger model), '
            'ema=True (EMA weights), sha256 and adapt_input=True (in_channels other than 3)'
        )
    return load_pretrained(model, **arguments)
