"""Table of the GC ViT model sizes, one row per size, and the settings of published networks.

Source: Hatamizadeh et al., `Global Context Vision Transformers
<https://arxiv.org/abs/2206.09959>`_, and the model tables published by NVIDIA.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from .arguments import NUM_STAGES, integer, is_int, is_real, one_per_stage


@dataclass(frozen=True)
class Arch:
    """Architecture settings of one GC ViT size.

    Attributes:
        embed_dims: Number of channels C₁ of the first stage. Stage i (counted from 0) has
            ``embed_dims * 2**i`` channels.
        depths: Number of blocks per stage.
        num_heads: Number of attention heads per stage. Each must divide the stage's channels.
        mlp_ratio: Ratio of the MLP's hidden channels to the block's channels.
        layer_scale_init_value: Initial value of layer scale. None disables layer scale.
        drop_path_rate: Stochastic depth rate of the last block in the published ImageNet
            training.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float
    layer_scale_init_value: float | None
    drop_path_rate: float = 0.0

    @property
    def dims(self) -> tuple[int, ...]:
        """Number of channels per stage."""
        return tuple(self.embed_dims * 2**i for i in range(NUM_STAGES))


ARCHS = {
    'xxtiny': Arch(64, (2, 2, 6, 2), (2, 4, 8, 16), 3, None, 0.2),
    'xtiny': Arch(64, (3, 4, 6, 5), (2, 4, 8, 16), 3, None, 0.2),
    'tiny': Arch(64, (3, 4, 19, 5), (2, 4, 8, 16), 3, None, 0.2),
    'tiny2': Arch(64, (3, 4, 29, 5), (2, 4, 8, 16), 3, None, 0.25),
    'small': Arch(96, (3, 4, 19, 5), (3, 6, 12, 24), 2, 1e-5, 0.3),
    'small2': Arch(96, (3, 4, 23, 5), (3, 6, 12, 24), 3, 1e-5, 0.35),
    'base': Arch(128, (3, 4, 19, 5), (4, 8, 16, 32), 2, 1e-5, 0.5),
    'large': Arch(192, (3, 4, 19, 5), (6, 12, 24, 48), 2, 1e-5, 0.5),
}


@dataclass(frozen=True)
class Preset:
    """Settings of :class:`mmgcvit.GCViT` that depend on what the network is used for.

    Attributes:
        window_size: Height and width of the attention windows in tokens, per stage.
        query_downsamples: How many times the query generator of each stage halves the height and
            width of the feature map.
        out_indices: Stages whose feature maps are returned.
    """

    window_size: tuple[int, ...]
    query_downsamples: tuple[int, ...]
    out_indices: tuple[int, ...]


DENSE_PREDICTION = Preset((24, 24, 24, 24), (3, 2, 1, 0), (0, 1, 2, 3))


def classifier(image_size: int) -> Preset:
    """Return the settings of the published classifier for square images.

    Windows have 7, 7, 14 and 7 tokens at 224×224, 12, 12, 24 and 12 at 384×384, and 16, 16, 32 and
    16 at 512×512: the feature maps of the last two stages are one window.

    Args:
        image_size: Height and width of the images in pixels.

    Raises:
        ValueError: If ``image_size`` is not a positive multiple of 32.
    """
    if not is_int(image_size) or image_size < 32 or image_size % 32:
        raise ValueError(
            f'image_size={image_size!r} is not allowed: give a positive multiple of 32, such as '
            '224, or set window_size instead'
        )
    last = int(image_size) // 32
    return Preset((last, last, 2 * last, last), (3, 2, 0, 0), (NUM_STAGES - 1,))


def resolve_arch(arch: str | Mapping) -> Arch:
    """Return the architecture settings for a name or a custom dict.

    Args:
        arch: A key of :data:`ARCHS`, or a dict with exactly the keys ``embed_dims``, ``depths``,
            ``num_heads``, ``mlp_ratio`` and ``layer_scale_init_value``.

    Raises:
        ValueError: If the name is unknown, or if the dict has missing keys, unknown keys or
            invalid values.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'arch={arch!r} is unknown: choose one of {", ".join(ARCHS)}, or define a custom '
                'size with a dict'
            )
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise ValueError(
            f'arch={arch!r} is not allowed: give a size name ({", ".join(ARCHS)}) or a dict'
        )
    keys = [field.name for field in fields(Arch) if field.name != 'drop_path_rate']
    missing = [key for key in keys if key not in arch]
    unknown = [key for key in arch if key not in keys]
    if missing or unknown:
        raise ValueError(
            f'arch={dict(arch)!r} is not allowed: missing keys {missing}, unknown keys {unknown}; '
            f'give exactly {", ".join(keys)}'
        )
    return _custom_arch(arch)


def _custom_arch(arch: Mapping) -> Arch:
    scale = arch['layer_scale_init_value']
    if scale is not None and not is_real(scale):
        raise ValueError(
            f"arch['layer_scale_init_value']={scale!r} is not allowed: give a number, or None for "
            'to disable layer scale'
        )
    ratio = arch['mlp_ratio']
    custom = Arch(
        # squeeze-excitation reduces the channels to a quarter
        embed_dims=integer("arch['embed_dims']", arch['embed_dims'], minimum=4),
        depths=one_per_stage("arch['depths']", arch['depths'], minimum=1),
        num_heads=one_per_stage("arch['num_heads']", arch['num_heads'], minimum=1),
        mlp_ratio=ratio,
        layer_scale_init_value=scale,
    )
    if not is_real(ratio) or int(custom.embed_dims * ratio) < 1:
        raise ValueError(
            f"arch['mlp_ratio']={ratio!r} is not allowed: give a number of at least "
            f'{1 / custom.embed_dims:.3g}, so that the MLP has at least one hidden channel'
        )
    for stage, (dim, heads) in enumerate(zip(custom.dims, custom.num_heads, strict=True), 1):
        if dim % heads:
            raise ValueError(
                f"arch['num_heads']={arch['num_heads']!r} is not allowed: {heads} heads do not "
                f'divide the {dim} channels of stage {stage}; choose a divisor of {dim}'
            )
    return custom
