"""Fully sharded data parallel training, by mmengine's FlexibleRunner and FSDPStrategy."""

from mmengine.config import Config
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..models.stage import Block
from ..registry import FUNCTIONS
from .tool import ToolError


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block of GC ViT a unit of its own, as FSDP's ``auto_wrap_policy``.

    Heads stay with the rest of the model: detectors call their methods, and FSDP fetches weights
    for ``forward`` alone.
    """
    return transformer_auto_wrap_policy(module, recurse, nonwrapped_numel, {Block})


def settle_fsdp(cfg: Config, device: str) -> None:
    """Make a config's FSDP strategy, if it has one, run on this device.

    Raises:
        ToolError: It is asked for in a single process, or together with what it cannot do.
    """
    strategy = cfg.get('strategy') or {}
    if strategy.get('type') != 'FSDPStrategy':
        return
    if cfg.get('launcher', 'none') == 'none':
        raise ToolError(
            'strategy FSDPStrategy shards a model over processes: start them with '
            'tools/dist_train.sh, or train with the config that this one inherits from'
        )
    hooks = cfg.get('custom_hooks') or []
    if any(hook.get('type') == 'EMAHook' for hook in hooks):
        raise ToolError(
            'strategy FSDPStrategy and EMAHook do not go together, as the averaged model is not '
            'sharded: leave one of them out of the config'
        )
    constructor = cfg.optim_wrapper.get('constructor') or ''
    if constructor.endswith('LayerDecayOptimWrapperConstructor'):
        raise ToolError(
            'strategy FSDPStrategy and layer-wise learning-rate decay do not go together, as the '
            'parts of a tensor do not tell its shape: leave one of them out of the config'
        )
    if device == 'cpu':
        strategy.setdefault('model_wrapper', {}).device_id = 'cpu'
