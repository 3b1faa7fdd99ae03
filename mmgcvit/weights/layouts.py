"""Tensor names in every release of GC ViT, and the prefixes that wrappers add to them.

Each layout is one row of :data:`LAYOUTS`. It renames one tensor at a time, in both directions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]

# Names that torch.compile, FSDP, activation checkpointing and Lightning's strategies insert
# anywhere in a tensor's name. No tensor has them otherwise.
INNER_WRAPPERS = (
    '_orig_mod',
    '_fsdp_wrapped_module',
    '_checkpoint_wrapped_module',
    '_forward_module',
)
# Prefixes that a backbone may have in a file, in any order and number. DistributedDataParallel, EMA
# models, Lightning modules and training scripts add them.
OUTER_WRAPPERS = ('module', 'model', 'net', 'ema', 'backbone')

# (theirs, ours). Text that begins with a dot is replaced anywhere, other text only at the start.
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
# a classifier has only one norm, after the last stage
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
    # timm puts a downsampler at the start of the next stage, and numbers the blocks of the query
    # generator from 1
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
    """Tensor names of one release, for a backbone and a classifier's head.

    Attributes:
        key_tensors: Names of tensors, of which each GC ViT in this layout has exactly one.
        own_name: Function that returns this package's name of a tensor.
        their_name: Inverse of ``own_name``. Returns None if the layout has no such tensor. The
            second argument is whether the backbone has only the norm of its last output, which is
            the case in classifiers.
        gates_are_convolutions: Whether squeeze-excitation uses 1×1 convolutions instead of linear
            layers.
        is_classifier_only: Whether the layout does not support detectors and segmentors.
        classifier_prefix: Prefix of the names of a classifier's backbone.
        license: License of the weights published in this layout, according to their publisher.
    """

    key_tensors: tuple[str, ...]
    own_name: Callable[[str], str]
    their_name: Callable[[str, bool], str | None]
    gates_are_convolutions: bool = False
    is_classifier_only: bool = False
    classifier_prefix: str = ''
    license: str = ''

    def to_own(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Return a tensor with this package's name and shape."""
        own = self.own_name(name)
        if self.gates_are_convolutions and '.se.fc' in own and tensor.dim() > 2:
            tensor = tensor.flatten(1)
        return own, tensor

    def from_own(self, state: Mapping[str, Tensor]) -> State:
        """Return a state dict with the layout's names and shapes. Inverse of :meth:`to_own`.

        Args:
            state: Tensors of a backbone, a classifier's head, or both. Tensors that the layout does
                not have are skipped.
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
        ('patch_embed.conv_down.reduction.weight',),
        _from_nvidia,
        _to_nvidia,
        license="NVIDIA's published GC ViT weights and models fine-tuned from them are under "
        'CC BY-NC-SA 4.0',
    ),
    'timm': Layout(
        ('stem.down.reduction.weight',),
        _from_timm,
        _to_timm,
        gates_are_convolutions=True,
        is_classifier_only=True,
        license="see the model's page on https://huggingface.co/timm",
    ),
    'mmgcvit': Layout(
        # the second one is of variants with Swin's stem
        ('stem.downsample.reduction.weight', 'stem.patch_norm.weight'),
        lambda name: name,
        lambda name, _: name,
        classifier_prefix='backbone.',  # as in mmpretrain
    ),
}
to_nvidia, to_timm = LAYOUTS['nvidia'].from_own, LAYOUTS['timm'].from_own


def without_inner_wrappers(name: str) -> str:
    """Return a tensor's name without the parts that wrappers insert anywhere in it."""
    return '.'.join(part for part in name.split('.') if part not in INNER_WRAPPERS)


def find_backbones(
    names: Iterable[str], layouts: Mapping[str, Layout] = LAYOUTS
) -> list[tuple[str, str]]:
    """Return the prefix and layout of each GC ViT backbone in the names of a network."""
    return [
        (name.removesuffix(tensor), key)
        for name in names
        for key, layout in layouts.items()
        for tensor in layout.key_tensors
        if f'.{name}'.endswith(f'.{tensor}')
    ]


def is_of_backbone(name: str) -> bool:
    """Whether a name, in this package's layout, belongs to a backbone."""
    return re.match(r'(stem|stages|norm[0-3])\.', name) is not None


def is_of_wrappers(prefix: str) -> bool:
    """Whether a prefix consists only of names that wrappers add and ``backbone.``."""
    return set(prefix.split('.')[:-1]) <= set(OUTER_WRAPPERS)


def network_of(prefix: str) -> str:
    """Return the prefix of the network that contains a backbone, from the backbone's prefix."""
    parts = prefix.split('.')[:-1]
    parts = parts[: parts.index('backbone')] if 'backbone' in parts else parts
    return ''.join(f'{part}.' for part in parts)
