"""The tensor names of every release of GC ViT, and the prefixes that wrappers add to them.

A layout is one row of :data:`LAYOUTS`. It renames one tensor at a time, in both directions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]

# Names that modules wrapped in memory have anywhere in a path: torch.compile, FSDP and activation
# checkpointing. No tensor is named so otherwise.
INNER_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
# Names that the backbone of a file may be under: DistributedDataParallel, averaged models,
# Lightning modules and training scripts, in any order and number.
OUTER_WRAPPERS = ('module', 'model', 'net', 'ema', 'backbone')

# (theirs, ours). A text that begins with a dot is replaced anywhere, another one at the start.
NVIDIA_NAMES = (
    ('patch_embed.proj.', 'stem.conv.'),
    ('patch_embed.conv_down.', 'stem.downsample.'),
    ('levels.', 'stages.'),
    ('.q_global_gen.to_q_global.', '.query_generator.'),
    ('.conv.0.', '.mbconv.dwconv.'),
    ('.conv.2.fc.0.', '.mbconv.se.fc1.'),
    ('.conv.2.fc.2.', '.mbconv.se.fc2.'),
    ('.conv.3.', '.mbconv.pwconv.'),
    ('head.weight', 'head.fc.weight'),
    ('head.bias', 'head.fc.bias'),
)
# the only norm of a classifier follows its last stage
NVIDIA_CLASSIFIER_NAMES = (('norm.', 'norm3.'), *NVIDIA_NAMES)
TIMM_NAMES = (
    ('stem.conv1.', 'stem.conv.'),
    ('stem.down.', 'stem.downsample.'),
    ('.conv_block.', '.mbconv.'),
    ('.conv_dw.', '.dwconv.'),
    ('.conv_pw.', '.pwconv.'),
    ('.attn.rel_pos.relative_position', '.attn.relative_position'),
    ('.ls1.gamma', '.gamma1'),
    ('.ls2.gamma', '.gamma2'),
    ('stages.3.norm.', 'norm3.'),
)


def _replace(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if old.startswith('.'):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name[len(old) :]
    return name


def _inverse(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(ours, theirs) for theirs, ours in pairs]


def _from_nvidia(name: str) -> str:
    return _replace(name, NVIDIA_CLASSIFIER_NAMES)


def _to_nvidia(name: str, last_norm_only: bool) -> str:
    return _replace(name, _inverse(NVIDIA_CLASSIFIER_NAMES if last_norm_only else NVIDIA_NAMES))


def _from_timm(name: str) -> str:
    # a downsampler is at the start of the next stage, and the query generator counts from 1
    name = re.sub(r'^(stages\.)(\d+)(\.downsample\.)', lambda m: _shift(m, -1), name)
    pattern = r'(\.)global_block\.blocks\.conv(\d+)(\.)'
    name = re.sub(pattern, lambda m: f'.query_generator.{int(m[2]) - 1}.mbconv.', name)
    return _replace(name, TIMM_NAMES)


def _to_timm(name: str, last_norm_only: bool) -> str | None:
    if re.match(r'norm[012]\.', name):
        return None
    name = _replace(name, _inverse(TIMM_NAMES))
    name = re.sub(r'^(stages\.)(\d+)(\.downsample\.)', lambda m: _shift(m, 1), name)
    pattern = r'\.query_generator\.(\d+)\.conv_block\.'
    return re.sub(pattern, lambda m: f'.global_block.blocks.conv{int(m[1]) + 1}.', name)


def _shift(match: re.Match, by: int) -> str:
    return f'{match[1]}{int(match[2]) + by}{match[3]}'


@dataclass(frozen=True)
class Layout:
    """How one release names the tensors of a backbone and of a classifier's head.

    Attributes:
        telltale: Name of a tensor that a GC ViT in this layout has, and no other network.
        own_name: Returns this package's name of a tensor.
        their_name: The inverse; None if the layout has no such tensor. Its second argument is
            whether the backbone has the norm of its last output alone, as classifiers have.
        gates_are_convolutions: Whether squeeze-excitation has 1×1 convolutions, not linear layers.
        is_classifier_only: Whether there are no names for the rest of a detector or segmentor.
        classifier_prefix: What the names of a classifier's backbone begin with.
        licence: What the publisher says of the weights that are published in this layout.
    """

    telltale: str
    own_name: Callable[[str], str]
    their_name: Callable[[str, bool], str | None]
    gates_are_convolutions: bool = False
    is_classifier_only: bool = False
    classifier_prefix: str = ''
    licence: str = ''

    def to_own(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Return a tensor with this package's name and shape."""
        own = self.own_name(name)
        if self.gates_are_convolutions and '.se.fc' in own and tensor.dim() > 2:
            tensor = tensor.flatten(1)
        return own, tensor

    def from_own(self, state: Mapping[str, Tensor]) -> State:
        """Return a state dict with the layout's names and shapes, the inverse of :meth:`to_own`.

        Args:
            state: Tensors of a backbone, and of a classifier's head. Tensors that the layout does
                not have are left out.
        """
        last_norm_only = {n.partition('.')[0] for n in state if n.startswith('norm')} == {'norm3'}
        renamed = {}
        for name, tensor in state.items():
            if (theirs := self.their_name(name, last_norm_only)) is None:
                continue
            is_gate = self.gates_are_convolutions and '.se.fc' in name
            renamed[theirs] = tensor[..., None, None] if is_gate else tensor
        return renamed


LAYOUTS = {
    'nvidia': Layout(
        'patch_embed.conv_down.reduction.weight',
        _from_nvidia,
        _to_nvidia,
        licence="NVIDIA's published GC ViT weights, and what is fine-tuned from them, are under "
        'CC BY-NC-SA 4.0',
    ),
    'timm': Layout(
        'stem.down.reduction.weight',
        _from_timm,
        _to_timm,
        gates_are_convolutions=True,
        is_classifier_only=True,
        licence="see the model's page on https://huggingface.co/timm",
    ),
    'mmgcvit': Layout(
        'stem.downsample.reduction.weight',
        lambda name: name,
        lambda name, _: name,
        classifier_prefix='backbone.',  # as in mmpretrain
    ),
}
to_nvidia, to_timm = LAYOUTS['nvidia'].from_own, LAYOUTS['timm'].from_own


def without_inner_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that wrappers add anywhere in it."""
    return '.'.join(part for part in name.split('.') if part not in INNER_WRAPPERS)


def find_backbones(
    names: Iterable[str], layouts: Mapping[str, Layout] = LAYOUTS
) -> list[tuple[str, str]]:
    """Return the prefix and the layout of each GC ViT backbone among a network's names."""
    return [
        (name.removesuffix(layout.telltale), key)
        for name in names
        for key, layout in layouts.items()
        if f'.{name}'.endswith(f'.{layout.telltale}')
    ]


def is_of_backbone(name: str) -> bool:
    """Whether one of this package's names is that of a backbone's tensor."""
    return re.match(r'(stem|stages|norm[0-3])\.', name) is not None


def is_of_wrappers(prefix: str) -> bool:
    """Whether wrappers and ``backbone.`` alone make up a prefix."""
    return set(prefix.split('.')[:-1]) <= set(OUTER_WRAPPERS)


def network_of(prefix: str) -> str:
    """Return the prefix of the network that a backbone is a part of."""
    parts = prefix.split('.')[:-1]
    parts = parts[: parts.index('backbone')] if 'backbone' in parts else parts
    return ''.join(f'{part}.' for part in parts)
