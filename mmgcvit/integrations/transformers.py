"""GC ViT as a backbone of transformers 5: ``AutoBackbone`` and models with a ``backbone_config``.

Importing this module registers the model type 'mmgcvit', so no remote code is needed.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from ..errors import UserError
from ..models import GCViT
from ..models.arch import resolve_arch
from ..models.arguments import NUM_STAGES
from ..models.gcvit import Block, WindowAttention, init_linear


class GCViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Config of :class:`GCViTBackbone`.

    ``num_channels`` is the ``in_channels`` of :class:`mmgcvit.GCViT`, which describes the other
    arguments. ``out_features`` may name the outputs instead of ``out_indices``: 'stage1' to
    'stage4', with strides 4 to 32. All four are the default.
    """

    model_type = 'mmgcvit'

    arch: str | dict[str, Any] = 'tiny'
    num_channels: int = 3
    window_size: int | Sequence[int] | None = None
    query_downsamples: Sequence[int] | None = None
    attention_types: Sequence[str] = ('local', 'global')
    drop_path_rate: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    recompute: str = 'cheap'
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f'stage{i + 1}' for i in range(NUM_STAGES)]
        features, indices = kwargs.pop('out_features', None), kwargs.pop('out_indices', None)
        # transformers stores unknown arguments and ignores them
        ignored = sorted(set(kwargs) & set(inspect.signature(GCViT).parameters))
        if ignored:
            raise UserError(
                f'{", ".join(ignored)} of GCViT is not allowed in a GCViTConfig: for in_channels '
                'set num_channels, for with_cp set recompute, and leave out the others'
            )
        if features is None and indices is None:
            features = self.stage_names
        self.set_output_features_output_indices(features, indices)
        super().__post_init__(**kwargs)


class GCViTBackbone(BackboneMixin, PreTrainedModel):
    """GC ViT for transformers' ``AutoBackbone``, and for models such as UperNet and Mask2Former.

    :func:`mmgcvit.weights.load_pretrained` loads weights in any layout into it.

    Args:
        config: Config.

    Attributes:
        backbone (GCViT): The network.
        channels (list[int]): Number of channels of each output.

    Example:
        >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
        >>> from mmgcvit.integrations.transformers import GCViTConfig
        >>> config = UperNetConfig(backbone_config=GCViTConfig(arch='tiny'), num_labels=150)
        >>> model = UperNetForSemanticSegmentation(config)
    """

    config_class = GCViTConfig
    base_model_prefix = 'backbone'
    main_input_name = 'pixel_values'
    has_attentions = False

    def __init__(self, config: GCViTConfig) -> None:
        super().__init__(config)
        self.num_features = list(resolve_arch(config.arch).dims)
        self.backbone = GCViT(
            config.arch,
            config.num_channels,
            window_size=config.window_size,
            query_downsamples=config.query_downsamples,
            # indices in the config may be negative
            out_indices=[self.stage_names.index(name) for name in self.out_features],
            drop_path_rate=config.drop_path_rate,
            drop_rate=config.drop_rate,
            attn_drop_rate=config.attn_drop_rate,
            attention_types=config.attention_types,
            recompute=config.recompute,
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None
    ) -> BackboneOutput:
        """Compute the feature maps.

        Args:
            pixel_values: (B, num_channels, H, W), with H and W at least 1.
            output_hidden_states: Whether to also return the feature maps as hidden states.

        Returns:
            ``feature_maps``: one map (B, C_i, ⌈H/s⌉, ⌈W/s⌉) for each output and its stride s.
        """
        maps = self.backbone(pixel_values)
        return BackboneOutput(maps, hidden_states=maps if output_hidden_states else None)

    def _init_weights(self, module: nn.Module) -> None:
        # as GCViT does; transformers also calls this for parameters that a file lacks
        if isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            init_linear(module)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        elif isinstance(module, Block) and module.gamma1 is not None:
            value = resolve_arch(self.config.arch).layer_scale_init_value
            nn.init.constant_(module.gamma1, value)
            nn.init.constant_(module.gamma2, value)


AutoConfig.register(GCViTConfig.model_type, GCViTConfig)
AutoBackbone.register(GCViTConfig, GCViTBackbone)
