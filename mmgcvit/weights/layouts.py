"""The names that other releases of GC ViT give their tensors, and what they are here.

A layout renames the tensors of a backbone, both ways. Bias tables keep their size.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = dict[str, Tensor]

# (NVIDIA's, ours); replaced in this order as plain text, both ways
NVIDIA_NAMES = (
    ('patch_embed.proj.', 'stem.conv.'),
    ('patch_embed.conv_down.', 'stem.downsample.'),
    ('levels.', 'stages.'),
    ('.q_global_gen.to_q_global.', '.query_generator.'),
    ('.conv.0.', '.mbconv.dwconv.'),
    ('.conv.2.fc.0.', '.mbconv.se.fc1.'),
    ('.conv.2.fc.2.', '.mbconv.se.fc2.'),
    ('.conv.3.', '.mbconv.pwconv.'),
)

# (pattern of timm's, ours; pattern of ours, timm's); replaced in this order
TIMM_NAMES = (
    (r'^stem\.conv1\.', 'stem.conv.', r'^stem\.conv\.', 'stem.conv1.'),
    (r'^stem\.down\.', 'stem.downsample.', r'^stem\.downsample\.', 'stem.down.'),
    (r'\.conv_block\.', '.mbconv.', r'\.mbconv\.', '.conv_block.'),
    (r'\.conv_dw\.', '.dwconv.', r'\.dwconv\.', '.conv_dw.'),
    (r'\.conv_pw\.', '.pwconv.', r'\.pwconv\.', '.conv_pw.'),
    (
        r'\.attn\.rel_pos\.',
        '.attn.',
        r'\.attn\.relative_position',
        '.attn.rel_pos.relative_position',
    ),
    (r'\.ls([12])\.gamma$', r'.gamma\1', r'\.gamma([12])$', r'.ls\1.gamma'),
    (r'^stages\.3\.norm\.', 'norm3.', r'^norm3\.', 'stages.3.norm.'),
)


def from_nvidia(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of NVIDIA's classifiers and detection backbones."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NVIDIA_NAMES:
            name = name.replace(theirs, ours)
        # the classifier's only norm follows its last stage
        name = re.sub(r'^norm\.', 'norm3.', name)
        renamed[re.sub(r'^head\.(weight|bias)$', r'head.fc.\1', name)] = tensor
    return renamed


def to_nvidia(state: Mapping[str, Tensor]) -> State:
    """Rename this package's tensors as in NVIDIA's files.

    Those of a backbone with the norm of its last output alone, as classifiers have it, get the
    names of NVIDIA's classifiers, others those of its detection backbones.
    """
    norms = {name.partition('.')[0] for name in state if name.startswith('norm')}
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NVIDIA_NAMES:
            name = name.replace(ours, theirs)
        if norms == {'norm3'}:
            name = re.sub(r'^norm3\.', 'norm.', name)
        renamed[re.sub(r'^head\.fc\.', 'head.', name)] = tensor
    return renamed


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of timm's ``gcvit_*`` classifiers."""
    renamed = {}
    for name, tensor in state.items():
        # timm has a downsampler at the start of the next stage
        if match := re.match(r'stages\.(\d+)\.downsample\.', name):
            name = f'stages.{int(match[1]) - 1}.downsample.{name[match.end() :]}'
        # and counts the query generator's layers from 1
        if match := re.search(r'\.global_block\.blocks\.conv(\d+)\.', name):
            layer = f'.query_generator.{int(match[1]) - 1}.mbconv.'
            name = name[: match.start()] + layer + name[match.end() :]
        for theirs, ours, _, _ in TIMM_NAMES:
            name = re.sub(theirs, ours, name)
        # squeeze-excitation as 1×1 convolutions
        squeezes = '.se.fc' in name and tensor.dim() > 2
        renamed[name] = tensor.flatten(1) if squeezes else tensor
    return renamed


def to_timm(state: Mapping[str, Tensor]) -> State:
    """Rename this package's tensors as in timm's classifiers, which have no norms but the last."""
    renamed = {}
    for name, tensor in state.items():
        if re.match(r'norm[012]\.', name):
            continue
        for _, _, ours, theirs in TIMM_NAMES:
            name = re.sub(ours, theirs, name)
        if match := re.match(r'stages\.(\d+)\.downsample\.', name):
            name = f'stages.{int(match[1]) + 1}.downsample.{name[match.end() :]}'
        if match := re.search(r'\.query_generator\.(\d+)\.conv_block\.', name):
            layer = f'.global_block.blocks.conv{int(match[1]) + 1}.'
            name = name[: match.start()] + layer + name[match.end() :]
        renamed[name] = tensor[..., None, None] if '.se.fc' in name else tensor
    return renamed


def _same(state: Mapping[str, Tensor]) -> State:
    return dict(state)


@dataclass(frozen=True)
class Layout:
    """How one release names the tensors of a backbone and of a classifier's head.

    Attributes:
        telltale: A tensor that this layout alone has.
        to_own: Gives a state dict this package's names.
        from_own: The inverse.
        licence: What its publisher says of the weights that are published in it.
    """

    telltale: str
    to_own: Callable[[Mapping[str, Tensor]], State]
    from_own: Callable[[Mapping[str, Tensor]], State]
    licence: str


LAYOUTS = {
    'nvidia': Layout(
        'patch_embed.proj.weight',
        from_nvidia,
        to_nvidia,
        "NVIDIA's published GC ViT weights are under CC BY-NC-SA 4.0",
    ),
    'timm': Layout(
        'stem.conv1.weight',
        from_timm,
        to_timm,
        "see the model's page on https://huggingface.co/timm",
    ),
    'mmgcvit': Layout('stem.conv.weight', _same, _same, ''),
}


def layout_of(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the layout of a backbone's tensors, None if it is none of ours."""
    found = (name for name, layout in LAYOUTS.items() if layout.telltale in state)
    return next(found, None)
