"""Variants of GC ViT for the ablations of the paper (tables 4, 5 and S.2).

A variant is a value: one row of :data:`VARIANTS`. :class:`GCViTVariant` builds the published
network and then replaces the parts in which the variant differs. Section, equation and table
numbers are those of :mod:`mmgcvit.models.gcvit`.

The paper describes its variants in a few words and their code was not published. The docstrings
below state what is Swin's, what the paper says, and what is our choice.

B: batch size, H, W: height and width of an image or a feature map, C: channels, L: tokens of a
feature map in window order, w: window size, nW: windows per feature map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..errors import UserError
from ..optional_mmengine import MODELS
from .arguments import one_of
from .gcvit import Downsampler, GCViT, Stem, WindowAttention, init_linear


class PatchEmbedding(nn.Module):
    """Swin's stem: a linear projection of patches of 4×4 pixels, followed by a norm.

    The arguments are those of :class:`mmgcvit.models.gcvit.Stem`.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 4, stride=4)
        # this name identifies the layout of weights, see mmgcvit.weights.layouts
        self.patch_norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, dim)."""
        height, width = images.shape[2:]
        # like Swin, pad on the right and bottom
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        x = self.conv(ops.prepare_images(images))
        return self.patch_norm(x.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Swin's downsampler: a norm and a linear projection of the channels of 2×2 tokens.

    The arguments are those of :class:`mmgcvit.models.gcvit.Downsampler`.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim)."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2)).permute(0, 3, 1, 2)
        return self.reduction(self.norm(F.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)))


class ConvMaxPool(nn.Module):
    """The simplest downsampler of table 5: a convolution and a max pooling layer.

    Our choice: a 3×3 convolution with bias and no norm, and the pooling that section 2 describes,
    with a kernel of 3×3 and stride 2. The arguments are those of
    :class:`mmgcvit.models.gcvit.Downsampler`.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim)."""
        return self.pool(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class GlobalKeyValueAttention(WindowAttention):
    """Attention of a window's queries to keys and values of global tokens (table S.2, Global KV).

    The query generator of the stage computes the global tokens, w×w for each image. Section C.1
    only says that global key and value features interact with a local query. Our choices:

    - The query is projected from the window's tokens, C → C. Key and value are projected from the
      global tokens, C → 2C, in each block. The published network uses its global query without a
      projection; the same here would make key and value equal, in all blocks.
    - The position bias is the published one: between a query's position in the window and a
      key's position in the w×w map of global tokens.
    - Padded tokens, which are zero before the projection, only have queries, and the outputs of
      these are removed. So they have no influence here.

    The blocks of a variant compute padded tokens, as the published network does. The arguments
    are those of :class:`mmgcvit.models.gcvit.WindowAttention` for global attention. torch.fx
    cannot trace this class.
    """

    # of query, key and value, in this order, the number that window tokens are projected to
    num_local = 1

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, window_size, True, attn_drop_rate, drop_rate)
        self.qkv = nn.Linear(dim, self.num_local * dim)
        self.global_qkv = nn.Linear(dim, (3 - self.num_local) * dim)

    def forward(
        self, x: Tensor, windows: ops.Windows, global_query: Tensor | None = None
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: Tokens in window order, (B, L, C).
            windows: Window layout, which defines the order of the tokens.
            global_query: Global tokens, (B, w², C).

        Returns:
            (B, L, C).
        """
        padded = ops.PaddedWindows(windows.height, windows.width, windows.window_size)
        local = self.qkv(padded.partition(windows.merge(x)))
        # the rest is local attention, once each window has its own copy of the global tokens
        num_windows = local.shape[1] // windows.window_size**2
        shared = self.global_qkv(global_query).repeat(1, num_windows, 1)
        qkv = torch.cat([local, shared], -1)
        table = self.relative_position_bias_table
        dropout = self.attn_drop_rate if self.training else 0.0
        x = self.proj(ops.window_attention(qkv, padded, table, None, None, dropout))
        return self.drop(windows.partition(padded.merge(x)))

    def attention_probabilities(
        self, x: Tensor, windows: ops.Windows, global_query: Tensor | None = None
    ) -> NoReturn:
        """Raise UserError: weights of global tokens are not weights of places in the image."""
        raise UserError(
            f'the attention of {type(self).__name__} cannot be shown on an image, because it uses '
            'keys or values of global tokens: choose the blocks with local attention '
            '(--type local)'
        )


class GlobalValueAttention(GlobalKeyValueAttention):
    """Local attention weights with values of global tokens (table S.2, Global V).

    Query and key are projected from the window's tokens, C → 2C, and the value from the global
    tokens, C → C. Our choices in addition to those of :class:`GlobalKeyValueAttention`: the key
    at a position in the window selects the value at the same position in the w×w map of global
    tokens. A padded token has a key, as in the published network, and selects the value of its
    position.
    """

    num_local = 2


@dataclass(frozen=True)
class Variant:
    """The parts of a network in which a variant may differ. The defaults are GC ViT's.

    Attributes:
        source: Table and row of the paper.
        attention_types: The argument of :class:`mmgcvit.GCViT`.
        stem: Class of the stem.
        downsampler: Class of the downsamplers between stages. The stem keeps its own downsampler,
            since the paper adds the two one after the other (table 4).
        attention: Class of the attention in global blocks.
    """

    source: str
    attention_types: tuple[str, ...] = ('local', 'global')
    stem: type[nn.Module] = Stem
    downsampler: type[nn.Module] = Downsampler
    attention: type[WindowAttention] = WindowAttention


LOCAL = ('local',)
# The paper's results are in metafile.yml. The first two rows of table 4 are Swin, which mmpretrain
# has: configs/ablations/swin_t*.py.
VARIANTS = {
    'reparam': Variant('table 4, + Reparam.', LOCAL, PatchEmbedding, PatchMerging),
    'reparam_stem': Variant('table 4, + GC ViT-T Stem', LOCAL, downsampler=PatchMerging),
    'reparam_stem_downsampler': Variant('table 4, + GC ViT-T Down-sampler', LOCAL),
    'gcvit': Variant('table 4, + GC ViT-T Global Self-attention'),
    'conv_max_pool': Variant('table 5, convolution and max pooling', downsampler=ConvMaxPool),
    'patch_merging': Variant('table 5, patch merging', downsampler=PatchMerging),
    'global_kv': Variant('table S.2, w. Global KV', attention=GlobalKeyValueAttention),
    'global_v': Variant('table S.2, w. Global V', attention=GlobalValueAttention),
}


@MODELS.register_module()
class GCViTVariant(GCViT):
    """GC ViT with the parts that an ablation of the paper replaces.

    Args:
        arch: See :class:`mmgcvit.GCViT`, as for all other arguments. ``attention_types`` is not an
            argument here, since it belongs to the variant.
        variant: A key of :data:`VARIANTS`.

    Raises:
        ValueError: If an argument has an invalid value.
    """

    def __init__(
        self,
        arch: str | Mapping,
        variant: str,
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
        recompute: str = 'cheap',
        image_size: int | None = None,
    ) -> None:
        parts = VARIANTS[one_of('variant', variant, tuple(VARIANTS))]
        super().__init__(
            arch,
            in_channels=in_channels,
            window_size=window_size,
            query_downsamples=query_downsamples,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            init_cfg=init_cfg,
            attention_types=parts.attention_types,
            recompute=recompute,
            image_size=image_size,
        )
        self.variant = variant
        self._replace(parts)
        ops.prepare_parameters(self)
        self._freeze()

    def _replace(self, parts: Variant) -> None:
        """Replace the modules whose class differs from the published one."""
        if parts.stem is not Stem:
            self.stem = parts.stem(self.in_channels, self.stem.conv.out_channels)
            self.stem.apply(init_linear)
        for stage in self.stages:
            if stage.downsample is not None and parts.downsampler is not Downsampler:
                reduction = stage.downsample.reduction
                stage.downsample = parts.downsampler(reduction.in_channels, reduction.out_channels)
                stage.downsample.apply(init_linear)
            for block in stage.blocks:
                old = block.attn
                if old.is_global and parts.attention is not WindowAttention:
                    num_heads = old.relative_position_bias_table.shape[1]
                    size = old.proj.in_features, num_heads, stage.window_size
                    block.attn = parts.attention(*size, old.attn_drop_rate, old.drop.p)
                    block.attn.apply(init_linear)
