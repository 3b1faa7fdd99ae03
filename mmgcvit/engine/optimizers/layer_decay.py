"""Layer-wise learning-rate decay: early layers of a pretrained backbone learn more slowly.

Introduced for fine-tuning by Clark et al. (ELECTRA, ICLR 2020), for vision transformers by Bao
et al. (BEiT, ICLR 2022).
"""

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ...errors import UserError
from ...models import GCViT
from ...registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give every layer of a model with a GC ViT backbone its own learning rate.

    With n blocks in the backbone, the stem is layer 0, the blocks are layers 1 to n, and all that
    is not in the backbone is layer n + 1. A query generator belongs to its stage's first block, a
    downsampler and an output norm to its stage's last. A layer's learning rate is
    ``decay_rate ** (n + 1 - layer)`` times what it would be. One-dimensional tensors and position
    bias tables get no weight decay. Each layer has one parameter group with weight decay and one
    without, more only where ``custom_keys`` distinguish more.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its optimizer needs an ``lr``.
        paramwise_cfg: ``decay_rate``, above 0 and at most 1; and what mmengine's own constructor
            takes, with its own meaning.

    Raises:
        UserError: If there is no such ``decay_rate`` or no ``lr``; when called, if the model's
            ``backbone`` is not a GC ViT.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='mmgcvit.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.8),
        ... )
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.decay_rate={rate!r} is not allowed: give a number '
                'above 0 and at most 1, for example 0.8'
            )
        if self.base_lr is None:
            raise UserError('optim_wrapper.optimizer has no lr, which layer-wise decay scales')
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
            # mmengine's constructor calls this for submodules; the model itself has no prefix
            super().add_params(params, module, prefix, is_dcn_module)
            return
        backbone = getattr(module, 'backbone', None)
        if not isinstance(backbone, GCViT):
            raise UserError(
                'layer-wise learning-rate decay needs a model whose backbone is a GCViT, and '
                f'{type(module).__name__}.backbone is {type(backbone).__name__}: remove '
                'optim_wrapper.constructor'
            )
        single = []
        super().add_params(single, module, prefix, is_dcn_module)
        params.extend(self._group(single, module, backbone))

    def _group(self, single: list[dict], model: nn.Module, backbone: GCViT) -> list[dict]:
        """Scale the learning rates of groups of one parameter, and put equal groups together."""
        names = {parameter: name for name, parameter in model.named_parameters()}
        _, num_layers = backbone.get_layer_depth('')
        groups = {}
        for settings in single:
            (parameter,) = settings.pop('params')
            name = names[parameter]
            # mmengine has applied these two already and only leaves them lying there
            settings = {k: v for k, v in settings.items() if k not in ('lr_mult', 'decay_mult')}
            layer, _ = backbone.get_layer_depth(name, 'backbone.')
            scale = self.decay_rate ** (num_layers - 1 - layer)
            settings['lr'] = scale * settings.get('lr', self.base_lr)
            if parameter.ndim <= 1 or name.endswith('relative_position_bias_table'):
                settings['weight_decay'] = 0.0
            elif self.base_wd is not None:
                settings.setdefault('weight_decay', self.base_wd)
            key = layer, repr(sorted(settings.items()))
            groups.setdefault(key, {'params': [], **settings})['params'].append(parameter)
        blocks = num_layers - 2
        print_log(
            f'layer-wise learning-rate decay {self.decay_rate}: {blocks} blocks, {len(groups)} '
            f'parameter groups, stem at {self.decay_rate ** (blocks + 1):.2g} of the rate of the '
            'heads',
            logger='current',
        )
        return [groups[key] for key in sorted(groups)]
