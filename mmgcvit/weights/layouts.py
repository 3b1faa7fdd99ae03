"""The names that other releases of GC ViT give their tensors, and what they become here.

A layout is a function from a state dict to one with this package's names. Tensors without a
counterpart here (classifiers, index buffers) keep names that no backbone has; bias tables keep
their size.
"""

import re
from collections.abc import Callable, Mapping

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

# (pattern of timm's, ours); replaced in this order
TIMM_NAMES = (
    (r'^stem\.conv1\.', 'stem.conv.'),
    (r'^stem\.down\.', 'stem.downsample.'),
    (r'\.conv_block\.', '.mbconv.'),
    (r'\.conv_dw\.', '.dwconv.'),
    (r'\.conv_pw\.', '.pwconv.'),
    (r'\.attn\.rel_pos\.', '.attn.'),
    (r'\.ls([12])\.gamma$', r'.gamma\1'),
    (r'^stages\.3\.norm\.', 'norm3.'),
)


def from_nvidia(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of NVIDIA's classifiers and detection backbones."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NVIDIA_NAMES:
            name = name.replace(theirs, ours)
        # the classifier's only norm follows its last stage
        name = re.sub(r'^norm\.', 'norm3.', name)
        renamed[name] = tensor
    return renamed


def to_nvidia(state: Mapping[str, Tensor]) -> State:
    """Rename this package's tensors as in NVIDIA's detection backbones."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NVIDIA_NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of timm's ``gcvit_*`` classifiers."""
    renamed = {}
    for name, tensor in state.items():
        # timm has a downsampler at the start of the next stage
        match = re.match(r'stages\.(\d+)\.downsample\.', name)
        if match:
            name = f'stages.{int(match[1]) - 1}.downsample.{name[match.end() :]}'
        # and counts the query generator's layers from 1
        match = re.search(r'\.global_block\.blocks\.conv(\d+)\.', name)
        if match:
            layer = f'.query_generator.{int(match[1]) - 1}.mbconv.'
            name = name[: match.start()] + layer + name[match.end() :]
        for pattern, ours in TIMM_NAMES:
            name = re.sub(pattern, ours, name)
        # squeeze-excitation as 1×1 convolutions
        if '.se.fc' in name:
            tensor = tensor.flatten(1)
        renamed[name] = tensor
    return renamed


# a tensor that this layout alone has → the layout
LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], State]] = {
    'patch_embed.proj.weight': from_nvidia,
    'stem.conv1.weight': from_timm,
}


def to_own(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of another known layout; others, our own among them, stay as they are."""
    for telltale, layout in LAYOUTS.items():
        if telltale in state:
            return layout(state)
    return dict(state)
