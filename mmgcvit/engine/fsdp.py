"""Fully sharded data parallel training with mmengine's FlexibleRunner and FSDPStrategy."""

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..models.gcvit import Block
from ..registry import FUNCTIONS, STRATEGIES


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Wrap each block of GC ViT as an FSDP unit; an ``auto_wrap_policy``.

    Heads stay in the root unit: FSDP gathers the weights of a unit only in ``forward``, but
    detectors also call other methods of the heads.
    """
    return transformer_auto_wrap_policy(module, recurse, nonwrapped_numel, {Block})


def shards_on_cpu() -> bool:
    """Whether this version of PyTorch supports FSDP on a CPU, unlike torch 2.1."""
    try:
        torch.cpu.Stream(priority=-1)
    except TypeError:
        return False
    return True


@STRATEGIES.register_module(name='FSDPStrategy')
class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with support for resuming on torch 2.1 and later."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if get_device() == 'cpu':
            # On a CPU, offloading does not copy a state, and torch gathers the next state into the
            # same memory: AdamW's second moments would overwrite the first moments.
            self.optim_state_dict_config.offload_to_cpu = False

    def build_optim_wrapper(
        self, optim_wrapper: BaseOptimWrapper | dict, model: nn.Module | None = None
    ) -> BaseOptimWrapper:
        built = super().build_optim_wrapper(optim_wrapper, model)
        if getattr(built, 'clip_grad_kwargs', None) and built.grad_name == 'grad_norm':
            # mmengine's function uses only the norm of this process's shards
            built.clip_func = lambda _, **settings: self.model.clip_grad_norm_(**settings)
        return built

    def load_checkpoint(self, filename: str, **kwargs: Any) -> dict:
        # mmengine would load a copy of the complete model onto each GPU
        return super().load_checkpoint(filename, **(kwargs | {'map_location': 'cpu'}))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        # mmengine passes these by position, in the order of an earlier torch version
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(state)
