"""What a weights file holds: the tensors of a backbone, and those of the rest of a network."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError
from .layouts import LAYOUTS, State, layout_of

EMA_KEYS = ('state_dict_ema', 'model_ema')
STATE_KEYS = ('state_dict', 'model')
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Contents:
    """The tensors of a file, sorted.

    Attributes:
        layout: The key of :data:`LAYOUTS` that the backbone's names were in, None if in none.
        backbone: The backbone's tensors, with this package's names.
        others: Those of the network around it, with the names that they have in mmpretrain, mmdet
            and mmseg: ``head.fc.*`` of a classifier, ``neck.*`` and so on of a detector.
        dropped: Names, in the file, of what no network needs.
    """

    layout: str | None
    backbone: State
    others: State = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    @property
    def is_classifier(self) -> bool:
        """Whether the network around the backbone is one linear layer."""
        return bool(self.others) and all(name.startswith('head.fc.') for name in self.others)


def tensors_of(content: object, source: str, ema: bool = False) -> State:
    """Return the names and tensors of a checkpoint, which may hold other things beside them.

    Args:
        content: What was read.
        source: Where it comes from, for messages.
        ema: Take the weights that were averaged over the training (exponential moving average)
            and are beside the others. mmengine's EMAHook puts them in the others' place.

    Raises:
        UserError: If there are none.
    """
    averaged = _first(content, EMA_KEYS)
    state = _first(content, STATE_KEYS)
    if ema:
        hooked = state is not None and _first(content, ('ema_state_dict',)) is not None
        if averaged is None and not hooked:
            raise UserError(
                f'ema=True, and {source} has no averaged weights: they would be under '
                f'{" or ".join(EMA_KEYS)}; leave ema out to take the others'
            )
        state = state if averaged is None else averaged
    elif state is None and averaged is not None:
        raise UserError(f'{source} has averaged weights alone: ask for them with ema=True')
    elif state is None:
        state = content if isinstance(content, Mapping) else {}
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(
            f'{source} holds no tensors: a weights file is a dict of names and tensors, by itself '
            "or under 'state_dict' or 'model'"
        )
    return tensors


def _first(content: object, keys: tuple[str, ...]) -> Mapping | None:
    if not isinstance(content, Mapping):
        return None
    found = (content[key] for key in keys if isinstance(content.get(key), Mapping))
    return next(found, None)


def sort_tensors(state: Mapping[str, Tensor], source: str, prefix: str | None = None) -> Contents:
    """Tell a backbone's tensors from others, and give them this package's names.

    Args:
        state: Names and tensors, in any known layout.
        source: Where they come from, for messages.
        prefix: Start of the names of the backbone's tensors; ``module.`` and ``backbone.`` are
            found without.

    Raises:
        UserError: If no name starts with the prefix, or a tensor of the backbone is not
            of finite floating-point numbers.
    """
    if prefix is None:
        while any(name.startswith('module.') for name in state):
            state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    elif prefix and not prefix.endswith('.'):
        prefix = f'{prefix}.'
    part = below(state, prefix)
    if not part:
        raise UserError(
            f'prefix={prefix!r} fits none of the names in {source}, which are like {sample(state)}'
        )
    others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    contents = Contents(layout_of(part), {}, others)
    if contents.layout is None:
        contents.dropped = list(state)
        return contents
    for name, tensor in part.items():
        if is_index(name):
            contents.dropped.append(prefix + name)
            continue
        _check_tensor(prefix + name, tensor, source)
        ((own, tensor),) = LAYOUTS[contents.layout].to_own({name: tensor}).items()
        if re.match(r'(stem|stages|norm[0-3])\.', own):
            if own in contents.backbone:
                raise UserError(f'{source} has two tensors for {own}, one of them {name}')
            contents.backbone[own] = tensor
        elif not prefix and own.startswith('head.fc.'):
            contents.others[own] = tensor
        else:
            contents.dropped.append(prefix + name)
    return contents


def join_tensors(contents: Contents, layout: str) -> State:
    """Return the tensors of a network with a layout's names, the inverse of :func:`sort_tensors`.

    In this package's layout a backbone by itself has no prefix, and within a network ``backbone.``,
    as in mmpretrain, mmdet and mmseg. NVIDIA's and timm's classifiers have none.

    Raises:
        UserError: If the layout has no names for such a network.
    """
    alone = not contents.others
    if layout == 'timm' and not alone and not contents.is_classifier:
        raise UserError(
            "timm's layout has no names for the network around the backbone, which has tensors "
            f'like {sample(contents.others)}: convert the backbone only'
        )
    if alone or (contents.is_classifier and layout != 'mmgcvit'):
        return LAYOUTS[layout].from_own({**contents.backbone, **contents.others})
    backbone = LAYOUTS[layout].from_own(contents.backbone)
    return {**{f'backbone.{name}': t for name, t in backbone.items()}, **contents.others}


def _check_tensor(name: str, tensor: Tensor, source: str) -> None:
    kind = None
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = 'is sparse, quantized, nested or without values'
    elif tensor.dtype not in DTYPES:
        kind = f'has the type {tensor.dtype}'
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = 'is a few values repeated'
    if kind:
        raise UserError(
            f'{source}: {name} {kind}, and weights are dense floating-point numbers of 16 to 64 '
            'bits: give the file that the training wrote'
        )
    require_finite(name, tensor, source)


def require_finite(name: str, tensor: Tensor, source: str) -> None:
    """Refuse a tensor with NaN or infinity.

    Raises:
        UserError: If there is one.
    """
    if not tensor.isfinite().all():
        raise UserError(
            f'{source} holds NaN or infinity, in {name}: its training went wrong or the file is '
            'damaged; get another one'
        )


def is_index(name: str) -> bool:
    """Whether a tensor is the index buffer of NVIDIA's attention, which nothing here needs."""
    return name.endswith('.relative_position_index')


def below(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def sample(names: Iterable[str]) -> str:
    """Return a few names, for messages."""
    return ', '.join(list(names)[:3]) or 'none at all'
