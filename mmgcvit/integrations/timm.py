"""GC ViT in timm's registry: ``timm.create_model('mmgcvit_tiny', features_only=True)``.

Importing this module registers one model per size. segmentation_models_pytorch builds its encoders
from this registry: ``smp.Unet('tu-mmgcvit_tiny')``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureInfo, PretrainedCfg, register_model, resolve_pretrained_cfg
from torch import Tensor

from ..errors import UserError
from ..models import ARCHS, GCViT
from ..models.arguments import NUM_STAGES
from ..weights import load_pretrained
from ..weights.checkpoint import Checkpoint
from ..weights.fit import load_checkpoint

__all__ = ['TimmGCViT']

# read by register_model
default_cfgs = {
    f'mmgcvit_{arch}': dict(
        url=f'https://huggingface.co/nvidia/GCViT/resolve/main/gcvit_1k_{arch}.pth.tar',
        input_size=(3, 224, 224),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        license='cc-by-nc-sa-4.0',
        first_conv='stem.conv',
    )
    for arch in ARCHS
}


class TimmGCViT(GCViT):
    """GC ViT with the interface of timm's ``features_only`` models.

    The arguments are those of :class:`mmgcvit.GCViT`. Unlike timm's ``gcvit_*``, it has no
    classifier, and any image size is allowed.
    """

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and stride of the map of each stage."""
        first = self.out_channels[-1] // 2 ** self.out_indices[-1]
        stages = range(NUM_STAGES)
        info = [
            dict(num_chs=first * 2**i, reduction=4 * 2**i, module=f'stages.{i}') for i in stages
        ]
        return FeatureInfo(info, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) → one map (B, C_i, ⌈H/2^(i+2)⌉, ⌈W/2^(i+2)⌉) for each i in out_indices."""
        return list(super().forward(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = True,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the maps of some stages.

        Args:
            x: Images, (B, C, H, W).
            indices: Stages, counted from 0: those in ``out_indices`` by default. An integer n means
                the last n of them.
            norm: Ignored, because each map has its own norm.
            stop_early: Ignored. Stages after the last one in ``out_indices`` are not built.
            output_fmt: Order of the dimensions, 'NCHW' or 'NHWC'.
            intermediates_only: Whether to return only the maps of ``indices``.

        Returns:
            The last map and the maps of ``indices``, or only the maps of ``indices``.

        Raises:
            UserError: If an argument is not allowed.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise UserError(f"output_fmt={output_fmt!r} is not allowed: use 'NCHW' or 'NHWC'")
        if indices is None:
            indices = len(self.out_indices)
        if isinstance(indices, int):
            number = len(self.out_indices)
            if not 1 <= indices <= number:
                raise UserError(
                    f'indices={indices} is not allowed: use a number from 1 to {number}'
                )
            indices = self.out_indices[-indices:]
        # in the order of the network, as timm's models
        indices = sorted(set(_stages(indices)))
        if not set(indices) <= set(self.out_indices):
            raise UserError(
                f'indices={indices} is not allowed: the model was built with '
                f'out_indices={self.out_indices}'
            )
        maps = self(x)
        if output_fmt == 'NHWC':
            maps = [each.permute(0, 2, 3, 1) for each in maps]
        chosen = [maps[self.out_indices.index(i)] for i in indices]
        return chosen if intermediates_only else (maps[-1], chosen)


def _stages(indices: Iterable[int]) -> tuple[int, ...]:
    """Return indices of stages with those that count from the end, such as -1, made positive."""
    from_end = range(-NUM_STAGES, 0)
    return tuple(i + NUM_STAGES if i in from_end else i for i in indices)


def _load(model: TimmGCViT, cfg: PretrainedCfg, adapt_input: bool) -> None:
    """Load the weights that a config names, in timm's order of precedence."""
    if cfg.custom_load:
        raise UserError(
            f'custom_load={cfg.custom_load!r} of pretrained_cfg is not allowed: remove it, because '
            'all layouts of weights are recognized'
        )
    if cfg.state_dict:
        checkpoint = Checkpoint.from_content(cfg.state_dict, 'state_dict of pretrained_cfg')
        load_checkpoint(model, checkpoint, adapt_input)
        return
    hub = cfg.hf_hub_id and f'hf://{cfg.hf_hub_id}/{cfg.hf_hub_filename or "model.safetensors"}'
    source = cfg.file or hub or cfg.url
    if not source or isinstance(source, tuple):
        raise UserError(
            'pretrained=True is not allowed, because pretrained_cfg names no weights: set file, '
            'url (one string), hf_hub_id or state_dict in it'
        )
    load_pretrained(model, source, adapt_input=adapt_input)


def _register(name: str, arch: str) -> None:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,  # downloads are in torch hub's cache
        features_only: bool = False,
        in_chans: int = 3,
        output_stride: int = 32,
        **settings: Any,
    ) -> TimmGCViT:
        if not features_only:
            raise UserError(
                f'{name} has no classifier: set features_only=True, or for classification use '
                "timm's gcvit models"
            )
        if output_stride != 32:
            raise UserError(f'output_stride={output_stride} is not allowed: {name} has stride 32')
        if (indices := settings.get('out_indices')) is not None:
            chosen = range(-indices, 0) if isinstance(indices, int) else indices
            settings['out_indices'] = _stages(chosen)
        model = TimmGCViT(arch, in_channels=in_chans, **settings)
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        model.pretrained_cfg = model.default_cfg = cfg.to_dict()
        if pretrained:
            _load(model, cfg, adapt_input=in_chans != 3)
        return model

    create.__name__ = create.__qualname__ = name
    register_model(create)


for _arch in ARCHS:
    _register(f'mmgcvit_{_arch}', _arch)
