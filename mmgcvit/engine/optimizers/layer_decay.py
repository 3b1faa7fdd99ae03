"""Layer-wise learning-rate decay: lower learning rates for early layers of a pretrained backbone.

Clark et al. (ELECTRA, ICLR 2020) introduced it for fine-tuning, Bao et al. (BEiT, ICLR 2022) for
vision transformers.
"""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ...errors import UserError
from ...models import GCViT
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Set a learning rate for each layer of a model with a GC ViT backbone.

    With n blocks in the backbone, the stem is layer 0, the blocks are layers 1 to n, and the rest
    of the model is layer n + 1. A query generator belongs to the first block of its stage, a
    downsampler and an output norm to the last. The learning rate of a layer is multiplied by
    ``decay_rate ** (n + 1 - layer)``. One-dimensional tensors and position bias tables get no
    weight decay. Each layer has one parameter group with weight decay and one without, and more
    only if ``custom_keys`` distinguishes them.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its optimizer needs an ``lr``.
        paramwise_cfg: ``decay_rate``, above 0 and at most 1, and the keys of mmengine's
            ``DefaultOptimWrapperConstructor``.

    Raises:
        UserError: If ``decay_rate`` or ``lr`` is missing or invalid. When called, if the
            model's ``backbone`` is not a GC ViT.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='mmgcvit.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.92),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.decay_rate={rate!r} is not allowed: use a number '
                'above 0 and at most 1, for example 0.92'
            )
        if self.base_lr is None:
            raise UserError(
                'optim_wrapper.optimizer has no lr, which layer-wise decay scales: set '
                'optim_wrapper.optimizer.lr'
            )
        self.decay_rate = rate

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add all parameters of a model to the list of parameter groups."""
        if prefix:
            # mmengine's constructor calls this method for submodules; only the model has no prefix
            super().add_params(params, module, prefix, is_dcn_module)
            return
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, GCViT):
            raise UserError(
                'layer-wise learning-rate decay needs a model whose backbone is a GCViT, and '
                f'{type(module).__name__}.backbone is {type(backbone).__name__}: remove '
                'optim_wrapper.constructor'
            )
        single: list[dict[str, Any]] = []
        super().add_params(single, module, prefix, is_dcn_module)
        params.extend(self._group(single, module, backbone))

    def _group(self, single: list[dict], model: nn.Module, backbone: GCViT) -> list[dict]:
        """Scale the learning rates of single-parameter groups, and merge equal groups."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        _, num_layers = backbone.get_layer_depth('')
        groups: dict[tuple[int, str], dict[str, Any]] = {}
        for settings in single:
            (parameter,) = settings.pop('params')
            name = names[parameter]
            # mmengine has already applied them
            settings = {k: v for k, v in settings.items() if k not in ('lr_mult', 'decay_mult')}
            layer, _ = backbone.get_layer_depth(name, 'backbone.')
            scale = self.decay_rate ** (num_layers - 1 - layer)
            settings.setdefault('lr', self.base_lr)
            settings['lr'] *= scale
            if parameter.ndim <= 1 or name.endswith('relative_position_bias_table'):
                settings['weight_decay'] = 0.0
            elif self.base_wd is not None:
                settings.setdefault('weight_decay', self.base_wd)
            key = layer, repr(sorted(settings.items()))
            groups.setdefault(key, {'params': [], **settings})['params'].append(parameter)
        blocks = num_layers - 2
        print_log(
            f'layer-wise learning-rate decay {self.decay_rate}: {blocks} blocks, {len(groups)} '
            f"parameter groups, stem at {self.decay_rate ** (blocks + 1):.2g} of the heads' rate",
            logger='current',
        )
        return [groups[key] for key in sorted(groups)]
