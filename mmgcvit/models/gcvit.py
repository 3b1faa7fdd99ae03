"""The backbone: assembly, outputs, freezing, initial weights.

B: batch size, H, W: sides of an image or a map, C_i: channels of stage i, counted from 0.
"""

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule, PretrainedInit, initialize
from torch import Tensor, nn

from ..registry import MODELS
from .arch import resolve_arch
from .arguments import NUM_STAGES, integer, is_int, one_per_stage, rate
from .conv import Stem
from .stage import Stage


@MODELS.register_module()
class GCViT(BaseModule):
    """GC ViT backbone with one map for each of the stages asked for.

    Source: Hatamizadeh et al., `Global Context Vision Transformers
    <https://arxiv.org/abs/2206.09959>`_, ICML 2023. The defaults are those of the published
    detection networks.

    Args:
        arch: Size: xxtiny, xtiny, tiny, tiny2, small, small2, base or large; or a dict with
            ``embed_dims``, ``depths``, ``num_heads``, ``mlp_ratio`` and
            ``layer_scale_init_value`` (None for no layer scale).
        in_channels: Channels of the input images.
        window_size: Side of the attention windows in tokens, one for all stages or one each.
        query_downsamples: How many times each stage's global query generator halves the map.
        out_indices: Stages, counted from 0, whose maps are returned, in rising order. Nothing
            is built that none of them needs.
        drop_path_rate: Stochastic depth, rising linearly from 0 in the first block to this in
            the last of all four stages. None for the size's own ImageNet value; 0 for a dict.
        drop_rate: Dropout after the stem, the attention's projection and the MLP.
        attn_drop_rate: Dropout of the attention weights.
        frozen_stages: 0 freezes the stem, k the stem and the first k stages with their
            downsamplers: they get no gradients and stay in eval mode. -1 freezes nothing. Output
            norms are never frozen.
        with_cp: Recompute blocks in the backward pass: less memory, more time.
        init_cfg: Initialization config. ``dict(type='Pretrained', checkpoint=PATH_OR_URL)``
            takes the published (NVIDIA) weights, timm's, or this class's own, from what
            :func:`mmgcvit.weights.fetch` takes. Optional: ``prefix`` names a part of a larger
            model, ``ema=True`` takes averaged weights, ``sha256`` is compared with the file's.

    Attributes:
        out_channels (tuple[int, ...]): Channels of each output.
        strides (tuple[int, ...]): Pixels of the image for one step in each output.

    Raises:
        ValueError: If an argument has a value that no network can be built from.

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
        window_size: int | Sequence[int] = 24,
        query_downsamples: Sequence[int] = (3, 2, 1, 0),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        arch = resolve_arch(arch)
        if is_int(window_size):
            window_size = (window_size,) * NUM_STAGES
        window_sizes = one_per_stage('window_size', window_size, minimum=1)
        query_downsamples = one_per_stage('query_downsamples', query_downsamples, minimum=0)
        drop_rate = rate('drop_rate', drop_rate)
        attn_drop_rate = rate('attn_drop_rate', attn_drop_rate)
        if not isinstance(with_cp, bool):
            raise ValueError(f'with_cp={with_cp!r} is not allowed: give True or False')
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
        drop_path_rates = _rising_rates(rate('drop_path_rate', drop_path_rate), arch.depths)
        self.stages = nn.ModuleList(
            Stage(
                arch.dims[i],
                arch.num_heads[i],
                window_sizes[i],
                query_downsamples[i],
                arch.mlp_ratio,
                arch.layer_scale_init_value,
                drop_rate,
                attn_drop_rate,
                drop_path_rates[i],
                downsample=i < num_stages - 1,
                with_cp=with_cp,
            )
            for i in range(num_stages)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(arch.dims[i]))
        self.apply(_reset_linear)
        self._freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            images: (B, in_channels, H, W), H and W at least 1.

        Returns:
            For each stage i asked for, (B, C_i, ⌈H/2^(i+2)⌉, ⌈W/2^(i+2)⌉), contiguous.

        Raises:
            ValueError: If the input is not 4-dimensional, is empty or has another number of
                channels.
        """
        self._check_images(images)
        x = self.drop(self.stem(images))
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outputs)

    def train(self, mode: bool = True) -> 'GCViT':
        """Set training or eval mode; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; pretrained weights go through `mmgcvit.weights`.

        Raises:
            ValueError: If a Pretrained ``init_cfg`` has a key that is not known.
            mmgcvit.weights.WeightsError: If the file cannot be had, read or used.
        """
        configs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        pretrained = [c for c in configs if c['type'] in ('Pretrained', PretrainedInit)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        # only here does a model need to know of other layouts and of files
        from ..weights import load_pretrained

        initialize(self, [c for c in configs if c not in pretrained])
        for config in pretrained:
            arguments = {key: value for key, value in config.items() if key != 'type'}
            unknown = set(arguments) - {'checkpoint', 'prefix', 'ema', 'sha256'}
            if (
                unknown
                or 'checkpoint' not in config
                or not isinstance(config.get('ema', False), bool)
            ):
                raise ValueError(
                    f'init_cfg={config!r} is not allowed: besides type=Pretrained, give '
                    'checkpoint (a path or URL) and, if need be, prefix (of a backbone that is a '
                    'part of a larger model), ema=True and sha256'
                )
            load_pretrained(self, **arguments)
        self.is_init = True

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != self.in_channels or 0 in images.shape[2:]:
            raise ValueError(
                f'images of shape {tuple(images.shape)} are not allowed: GCViT takes '
                f'(B, {self.in_channels}, H, W) with H and W at least 1; for another number of '
                'channels build it with in_channels'
            )

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stem, self.drop, *self.stages[: self.frozen_stages]]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)


def _stage_indices(name: str, indices: Sequence[int]) -> tuple[int, ...]:
    """Return distinct stages in rising order as a tuple.

    Raises:
        ValueError: If they are something else.
    """
    stages = range(NUM_STAGES)
    if isinstance(indices, Sequence) and indices and all(is_int(i) for i in indices):
        found = tuple(int(i) for i in indices)
        if found == tuple(sorted(set(found))) and set(found) <= set(stages):
            return found
    raise ValueError(
        f'{name}={indices!r} is not allowed: give one or more of {tuple(stages)} in rising order'
    )


def _rising_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Spread rates from 0 to ``last`` evenly over all blocks; one list a stage."""
    steps = max(sum(depths) - 1, 1)
    rates = iter(last * block / steps for block in range(sum(depths)))
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _reset_linear(module: nn.Module) -> None:
    """Initialize linear layers as published; other layers keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
