"""GC ViT: stem, downsampler, query generator, attention, block, stage and backbone.

Source: Hatamizadeh et al., `Global Context Vision Transformers
<https://arxiv.org/abs/2206.09959>`_. Section, equation and figure numbers refer to the first arXiv
version, which precedes the ICML 2023 version.

Read from top to bottom, this file follows figure 2 of the paper. :mod:`mmgcvit.ops` decides how
attention is computed and what is saved for the backward pass. :mod:`mmgcvit.reference` implements
the same network with plain operations.

B: batch size, H, W: height and width of an image or a feature map, C: channels, L: tokens of a
feature map in window order, w: window size, h: heads.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..optional_mmengine import MODELS, BaseModule, initialize, is_pretrained, print_log
from .arch import DENSE_PREDICTION, classifier, resolve_arch
from .arguments import NUM_STAGES, integer, is_int, one_of, one_per_stage, rate, sequence_of

ATTENTION_TYPES = ('local', 'global')


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the channel means (Hu et al., 2018)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 4, bias=False)
        self.fc2 = nn.Linear(dim // 4, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        gate = self.fc2(F.gelu(self.fc1(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class FusedMBConv(nn.Module):
    """Depthwise convolution, GELU, squeeze-excitation, pointwise convolution, and a residual.

    See section 2, equation 1. Unlike the block of EfficientNetV2, this one starts with a depthwise
    convolution.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.se = SqueezeExcitation(dim)
        self.pwconv = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return x + self.pwconv(self.se(F.gelu(self.dwconv(x))))


class Downsampler(nn.Module):
    """Halve the height and width of a feature map (section 2, figure 3).

    Like the published network, this uses a strided convolution where the paper describes pooling.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.mbconv = FusedMBConv(in_dim)
        self.reduction = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim)."""
        x = self.norm1(x).permute(0, 3, 1, 2)
        x = self.reduction(self.mbconv(x))
        return self.norm2(x.permute(0, 2, 3, 1))


class Stem(nn.Module):
    """Compute the input feature map of the first stage from images (section 2)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.downsample = Downsampler(dim, dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, dim)."""
        x = self.conv(ops.prepare_images(images))
        return self.downsample(x.permute(0, 2, 3, 1))


class QueryLayer(nn.Module):
    """Fused-MBConv, followed by max pooling with stride 2 if ``pool`` is True (equation 2)."""

    def __init__(self, dim: int, pool: bool) -> None:
        super().__init__()
        self.mbconv = FusedMBConv(dim)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌈H/2⌉, ⌈W/2⌉), or (B, C, H, W) without pooling."""
        return self.pool(self.mbconv(x))


class GlobalQueryGenerator(nn.Sequential):
    """Reduce the feature map of a stage to one window of queries (section 2.1, figure 5).

    Args:
        dim: Number of channels C.
        window_size: Window size w.
        num_downsamples: How many times height and width are halved. 0 gives one layer without
            pooling.
    """

    def __init__(self, dim: int, window_size: int, num_downsamples: int) -> None:
        pool = num_downsamples > 0
        super().__init__(*(QueryLayer(dim, pool) for _ in range(max(num_downsamples, 1))))
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, w², C)."""
        query = super().forward(x.permute(0, 3, 1, 2))
        size = (self.window_size, self.window_size)
        # A no-op if the size matches. It runs unconditionally because a graph that serves any
        # size cannot branch.
        query = ops.resize_bicubic(query, size)
        return query.flatten(2).transpose(1, 2)


class WindowAttention(nn.Module):
    """Local or global self-attention within windows (section 2.2, equations 3 to 6).

    Args:
        dim: Number of channels C.
        num_heads: Number of heads h, a divisor of C.
        window_size: Window size w.
        is_global: Whether the queries come from the global query instead of the window's tokens.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_rate: Dropout rate of the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        is_global: bool,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.is_global = is_global
        self.attn_drop_rate = attn_drop_rate
        # Global attention projects only k and v, but published weights also use this name there.
        self.qkv = nn.Linear(dim, (2 if is_global else 3) * dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(
        self, x: Tensor, windows: ops.Windows, global_query: Tensor | None = None
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: Tokens in window order, (B, L, C).
            windows: Window layout, which defines the order of the tokens.
            global_query: Global query, (B, w², C). Local attention ignores it.

        Returns:
            (B, L, C).
        """
        dropout = self.attn_drop_rate if self.training else 0.0
        x = ops.window_attention(*self._project(x, windows, global_query), dropout)
        return self.drop(self.proj(x))

    def attention_probabilities(
        self, x: Tensor, windows: ops.Windows, global_query: Tensor | None = None
    ) -> list[tuple[ops.Region, Tensor]]:
        """Return the attention weights of :meth:`forward`, for visualization.

        A forward hook on this module can pass its inputs on to this method. See
        :func:`mmgcvit.ops.attention_probabilities` for the shapes.
        """
        return ops.attention_probabilities(*self._project(x, windows, global_query))

    def _project(self, x: Tensor, windows: ops.Windows, global_query: Tensor | None) -> tuple:
        # Feature maps are padded with zeros after the norm, so the projection of a padded token is
        # the bias. Calling the module instead of reading its bias also covers adapters and
        # replacements such as LoRA.
        padding = ops.project_padding(self.qkv, x, windows)
        table = self.relative_position_bias_table
        return self.qkv(x), windows, table, global_query if self.is_global else None, padding


class MLP(nn.Module):
    """Two linear layers with a GELU in between, applied to each token."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., C)."""
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): randomly drop a residual branch per image."""

    def __init__(self, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) → (B, L, C), rescaled so that the expected value stays the same."""
        if not self.training or self.drop_rate == 0:
            return x
        keep_rate = 1 - self.drop_rate
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep_rate) / keep_rate)


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP with residual connections (figure 6).

    Args:
        dim: Number of channels C.
        attention: Attention module for C channels.
        mlp_ratio: Ratio of the MLP's hidden channels to C.
        layer_scale_init_value: Initial value of layer scale. None disables layer scale.
        drop_rate: Dropout rate after the MLP.
        drop_path_rate: Stochastic depth rate of both branches.
    """

    def __init__(
        self,
        dim: int,
        attention: WindowAttention,
        mlp_ratio: float,
        layer_scale_init_value: float | None,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        if layer_scale_init_value is None:
            self.gamma1 = self.gamma2 = None
        else:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale_init_value)))

    def forward(
        self, x: Tensor, windows: ops.Windows, global_query: Tensor | None = None
    ) -> Tensor:
        """(B, L, C) → (B, L, C). Global attention also takes the global query, (B, w², C)."""
        x = x + self.drop_path(
            layer_scale(self.attn(self.norm1(x), windows, global_query), self.gamma1)
        )
        return x + self.drop_path(layer_scale(self.mlp(self.norm2(x)), self.gamma2))


def layer_scale(x: Tensor, gamma: Tensor | None) -> Tensor:
    """Scale the channels of a residual branch (LayerScale, Touvron et al., 2021)."""
    return x if gamma is None else x * gamma


class Stage(nn.Module):
    """Blocks at one resolution, with the query generator for their global attention (figure 2).

    The blocks process the tokens in window order, not in the row-major order of the feature map.

    Args:
        dim: Number of channels C.
        num_heads: Number of attention heads.
        window_size: Window size w.
        attention_types: 'local' or 'global' for each block.
        query_downsamples: How many times the query generator halves height and width.
        mlp_ratio: Ratio of the MLP's hidden channels to C.
        layer_scale_init_value: Initial value of layer scale. None disables layer scale.
        drop_rate: Dropout rate after the attention projection and the MLP of each block.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rates: Stochastic depth rate of each block.
        downsample: Whether to build a downsampler to 2·C channels. The backbone runs it after
            taking the stage's output.
        recompute: Which activations the backward pass recomputes, see :class:`GCViT`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        attention_types: Sequence[str],
        query_downsamples: int,
        mlp_ratio: float,
        layer_scale_init_value: float | None,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rates: Sequence[float],
        downsample: bool,
        recompute: str,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.recompute = recompute
        self.blocks = nn.ModuleList()
        for attention_type, drop_path_rate in zip(attention_types, drop_path_rates, strict=True):
            attn = WindowAttention(
                dim, num_heads, window_size, attention_type == 'global', attn_drop_rate, drop_rate
            )
            block = Block(dim, attn, mlp_ratio, layer_scale_init_value, drop_rate, drop_path_rate)
            self.blocks.append(block)
        self.query_generator = None
        if 'global' in attention_types:
            self.query_generator = GlobalQueryGenerator(dim, window_size, query_downsamples)
        self.downsample = Downsampler(dim, 2 * dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) → (B, H, W, C), before the downsampler."""
        global_query = None
        if self.query_generator is not None:
            global_query = ops.recompute(self.recompute, self.query_generator, x)
        windows = ops.window_layout(x, self.window_size)
        x = windows.partition(x)
        for block in self.blocks:
            x = ops.recompute(self.recompute, block, x, windows, global_query)
        return windows.merge(x)


@MODELS.register_module()
class GCViT(BaseModule):
    """GC ViT backbone that returns one feature map per output stage.

    The default arguments are those of the published detection networks. For classification, set
    ``image_size``.

    Args:
        arch: Model size: xxtiny, xtiny, tiny, tiny2, small, small2, base or large; or a dict with
            ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratio`` and
            ``layer_scale_init_value`` (None for no layer scale).
        in_channels: Number of channels of the input images.
        window_size: Height and width of the attention windows in tokens: one integer for all
            stages, or one per stage. None means 24, or the value for ``image_size``.
        query_downsamples: How many times the global query generator of each stage halves the
            height and width of the feature map. None means (3, 2, 1, 0), or the value for
            ``image_size``.
        attention_types: Attention types of consecutive blocks, 'local' or 'global'. Each stage
            repeats this sequence over its blocks. With ``('local',)``, the network has no global
            context and no query generators.
        out_indices: Indices of the stages whose feature maps are returned, counted from 0, in
            ascending order. Stages after the last index are not built. None means all four, or
            the value for ``image_size``.
        drop_path_rate: Stochastic depth rate. It increases linearly from 0 in the first block to
            this value in the last block of all four stages. With None, a named size uses its
            ImageNet value, and a dict uses 0.
        drop_rate: Dropout rate after the stem, the attention projection and the MLP.
        attn_drop_rate: Dropout rate of the attention weights.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k > 0 freezes the stem and the first
            k stages with their downsamplers. Frozen parts receive no gradients and stay in eval
            mode. Output norms are never frozen.
        recompute: Activations that the backward pass recomputes, so that they are not stored.
            ``'none'``: nothing. ``'cheap'``: outputs of norms and GELU, which saves much memory
            and takes little time. ``'block'``: complete blocks, stem, downsamplers and query
            generators, which uses the least memory and takes about 30 % more time. Old versions of
            torch, such as 2.1, do not support ``'cheap'`` and fall back to ``'none'``.
        with_cp: True means ``recompute='block'`` and overrides ``recompute``. Other OpenMMLab
            backbones have the same argument.
        init_cfg: Initialization config of mmengine. ``dict(type='Pretrained', checkpoint=...)``
            loads NVIDIA's weights, timm's or this class's own, with the arguments of
            :func:`mmgcvit.weights.load_pretrained`: ``prefix``, ``ema``, ``sha256`` and, for
            ``in_channels`` other than 3, ``adapt_input``.
        image_size: Height and width of the images of a classifier, a multiple of 32. The arguments
            above that are None then have the values of the published classifiers: windows of
            image_size / 32 tokens and twice as many in the third stage, such as (7, 7, 14, 7) for
            224; query downsamples (3, 2, 0, 0); only the output of the last stage. Other image
            sizes can still be processed.

    Attributes:
        out_channels (tuple[int, ...]): Number of channels of each output.
        strides (tuple[int, ...]): Stride of each output relative to the image.

    Raises:
        ValueError: If an argument has an invalid value.

    Example:
        >>> import torch
        >>> from mmgcvit import GCViT
        >>> model = GCViT('xxtiny').eval()
        >>> [tuple(out.shape) for out in model(torch.rand(1, 3, 100, 130))]
        [(1, 64, 25, 33), (1, 128, 13, 17), (1, 256, 7, 9), (1, 512, 4, 5)]
    """

    def __init__(
        self,
        arch: str | Mapping,
        in_channels: int = 3,
        window_size: int | Sequence[int] | None = None,
        query_downsamples: Sequence[int] | None = None,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | Sequence[dict] | None = None,
        attention_types: Sequence[str] = ('local', 'global'),
        recompute: str = 'cheap',
        image_size: int | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = resolve_arch(arch)
        defaults = DENSE_PREDICTION if image_size is None else classifier(image_size)
        window_size = defaults.window_size if window_size is None else window_size
        if query_downsamples is None:
            query_downsamples = defaults.query_downsamples
        out_indices = defaults.out_indices if out_indices is None else out_indices
        if is_int(window_size):
            window_size = (window_size,) * NUM_STAGES
        window_sizes = one_per_stage('window_size', window_size, minimum=1)
        query_downsamples = one_per_stage('query_downsamples', query_downsamples, minimum=0)
        drop_rate = rate('drop_rate', drop_rate)
        attn_drop_rate = rate('attn_drop_rate', attn_drop_rate)
        self.recompute = one_of('recompute', recompute, ops.RECOMPUTE_POLICIES)
        if one_of('with_cp', with_cp, (True, False)):
            self.recompute = 'block'
        attention_types = sequence_of('attention_types', attention_types, ATTENTION_TYPES)
        self.in_channels = integer('in_channels', in_channels, minimum=1)
        self.out_indices = _stage_indices('out_indices', out_indices)
        num_stages = self.out_indices[-1] + 1
        self.frozen_stages = integer('frozen_stages', frozen_stages, -1, num_stages)
        self.out_channels = tuple(arch.dims[i] for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)

        self.stem = Stem(in_channels, arch.dims[0])
        self.drop = nn.Dropout(drop_rate)
        if drop_path_rate is None:
            drop_path_rate = arch.drop_path_rate
        drop_path_rates = _drop_path_rates(rate('drop_path_rate', drop_path_rate), arch.depths)
        self.stages = nn.ModuleList(
            Stage(
                arch.dims[i],
                arch.num_heads[i],
                window_sizes[i],
                [attention_types[j % len(attention_types)] for j in range(arch.depths[i])],
                query_downsamples[i],
                arch.mlp_ratio,
                arch.layer_scale_init_value,
                drop_rate,
                attn_drop_rate,
                drop_path_rates[i],
                downsample=i < num_stages - 1,
                recompute=self.recompute,
            )
            for i in range(num_stages)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(arch.dims[i]))
        self.apply(init_linear)
        ops.prepare_parameters(self)
        self._register_load_state_dict_pre_hook(_resize_bias_tables_on_load, with_module=True)
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            images: (B, in_channels, H, W), with H and W at least 1.

        Returns:
            One contiguous tensor (B, C_i, ⌈H/2^(i+2)⌉, ⌈W/2^(i+2)⌉) for each i in ``out_indices``.

        Raises:
            ValueError: If the input is not 4-dimensional, has the wrong number of channels, or has
                zero height or width.
        """
        images = _check_images(images, self.in_channels)
        x = self.drop(ops.recompute(self.recompute, self.stem, images))
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = ops.recompute(self.recompute, stage.downsample, x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> 'GCViT':
        """Set training or eval mode. Frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize according to ``init_cfg``; see :func:`mmgcvit.weights.load_pretrained`.

        Raises:
            mmgcvit.errors.UserError: If a Pretrained ``init_cfg`` has an unknown key, or its file
                is not available, readable or suitable.
        """
        configs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        pretrained = [c for c in configs if is_pretrained(c)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        # imported here, because only pretrained weights need it
        from ..weights.fit import load_init_cfg

        initialize(self, [c for c in configs if c not in pretrained])
        for config in pretrained:
            load_init_cfg(self, config)
        self.is_init: bool = True

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the layer id of a parameter and the number of layers, for layer-wise lr decay.

        The stem is layer 0, and each block is one layer. A query generator belongs to the layer of
        the first block of its stage; a downsampler and an output norm belong to the layer of the
        last block. Parameters outside this backbone belong to the last layer.

        Args:
            param_name: Name of the parameter in the complete model.
            prefix: Prefix of this backbone's parameter names.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        elsewhere = num_layers - 1, num_layers
        match = re.fullmatch(
            re.escape(prefix) + r'(?:(stem)\..+|norm(\d)\..+|stages\.(\d)\.(\w+)\.(\d+\.)?.+)',
            param_name,
        )
        if match is None:
            return elsewhere
        stem, norm, stage, part, index = match.groups()
        if stem:
            return 0, num_layers
        i = int(norm or stage)
        if i >= len(depths):
            return elsewhere
        before = sum(depths[:i])
        if part == 'query_generator':
            return before + 1, num_layers
        if part == 'blocks':
            return before + 1 + int(index.rstrip('.')), num_layers
        return before + depths[i], num_layers

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stem, self.drop, *self.stages[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)


@ops.fx_leaf
def _check_images(images: Tensor, in_channels: int) -> Tensor:
    if images.dim() != 4 or images.shape[1] != in_channels or 0 in images.shape[2:]:
        raise ValueError(
            f'images of shape {tuple(images.shape)} are not allowed: GCViT takes '
            f'(B, {in_channels}, H, W) with H and W at least 1; for another number of '
            'channels, set in_channels'
        )
    return images


def _resize_bias_tables_on_load(
    model: GCViT, state: dict[str, Tensor], prefix: str, *args: object
) -> None:
    """Resize the position bias tables in a state dict for a plain ``load_state_dict``.

    Tables that cannot be resized are left unchanged, so that ``load_state_dict`` rejects them.
    """
    resized: dict[str, Tensor] = {}
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            # the name in a state dict; names of parameters may include those of wrappers
            name = f'{prefix}stages.{i}.blocks.{j}.attn.relative_position_bias_table'
            shape = tuple(block.attn.relative_position_bias_table.shape)
            with contextlib.suppress(ValueError):
                resized |= ops.resize_bias_tables(state, {name: shape})
    state.update(resized)
    if resized:
        print_log(
            f'{len(resized)} position bias tables were resized to the window sizes of the model',
            logger='current',
        )


def _stage_indices(name: str, indices: Sequence[int]) -> tuple[int, ...]:
    """Return ``indices`` as a tuple if they are distinct stages in ascending order.

    Raises:
        ValueError: Otherwise.
    """
    stages = range(NUM_STAGES)
    if isinstance(indices, Sequence) and indices and all(is_int(i) for i in indices):
        values = tuple(int(i) for i in indices)
        if values == tuple(sorted(set(values))) and set(values) <= set(stages):
            return values
    raise ValueError(
        f'{name}={indices!r} is not allowed: give one or more of {tuple(stages)} in ascending order'
    )


def _drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return rates that increase linearly from 0 to ``last`` over all blocks, a list per stage."""
    steps = max(sum(depths) - 1, 1)
    rates = iter(last * block / steps for block in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers as in the published code; other layers keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
