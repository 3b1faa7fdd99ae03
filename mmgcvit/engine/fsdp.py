"""Fully sharded data parallel training, by mmengine's FlexibleRunner and FSDPStrategy."""

from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.optim import BaseOptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..errors import UserError
from ..models.gcvit import Block
from ..registry import FUNCTIONS, HOOKS, STRATEGIES, class_of


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block of GC ViT a unit of its own, as FSDP's ``auto_wrap_policy``.

    Heads stay with the rest of the model: detectors call their methods, and FSDP fetches weights
    for ``forward`` alone.
    """
    return transformer_auto_wrap_policy(module, recurse, nonwrapped_numel, {Block})


@STRATEGIES.register_module(name='FSDPStrategy')
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy, whose trainings can be resumed with torch 2.1 and later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if get_device() == 'cpu':
            # There torch copies nothing to offload, and gathers the next state into the same
            # memory: checkpoints would have AdamW's second moments in place of its first.
            self.optim_state_dict_config.offload_to_cpu = False

    def build_optim_wrapper(
        self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        built = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(built, 'clip_grad_kwargs', None) and built.grad_name == 'grad_norm':
            # mmengine's would take the norm of this process's part of the gradients
            built.clip_func = lambda _, **settings: self.model.clip_grad_norm_(**settings)
        return built

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict:
        # mmengine would resume from a copy of the whole model on each GPU
        return super().load_checkpoint(filename, **(kwargs | {'map_location': 'cpu'}))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        # mmengine gives these by place, in the order that torch had before
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state)


def settle_fsdp(cfg: Config, device: str) -> None:
    """Make a config's FSDP strategy, if it has one, run on this device.

    Raises:
        UserError: It is asked for in a single process, or together with what it cannot do.
    """
    strategy = cfg.get('strategy') or {}
    if strategy.get('type') not in ('FSDPStrategy', 'mmgcvit.FSDPStrategy'):
        return
    strategy['type'] = 'mmgcvit.FSDPStrategy'
    if cfg.get('launcher', 'none') == 'none':
        raise UserError(
            'strategy FSDPStrategy shards a model over processes: start them with '
            'tools/dist_train.sh, or train with the config that this one inherits from'
        )
    hooks = cfg.get('custom_hooks') or []
    if any(class_of(hook, HOOKS) is EMAHook for hook in hooks):
        raise UserError(
            'strategy FSDPStrategy and EMAHook do not go together, as the averaged model is not '
            'sharded: leave one of them out of the config'
        )
    constructor = cfg.optim_wrapper.get('constructor') or ''
    if constructor.endswith('LayerDecayOptimWrapperConstructor'):
        raise UserError(
            'strategy FSDPStrategy and layer-wise learning-rate decay do not go together, as the '
            'parts of a tensor do not tell its shape: leave one of them out of the config'
        )
    if device == 'cpu':
        strategy.setdefault('model_wrapper', {})['device_id'] = 'cpu'
