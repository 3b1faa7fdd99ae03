"""A hook for tests of several processes."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SaveRankWeights(Hook):
    """Writes the final weights of every process, of which a checkpoint has the first one's.

    Besides, how many elements of parameters the process holds: with FSDP a part of them.
    """

    def after_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        torch.save(model.state_dict(), Path(runner.work_dir) / f'rank_{runner.rank}.pth')
        elements = sum(parameter.numel() for parameter in runner.model.parameters())
        Path(runner.work_dir, f'rank_{runner.rank}.txt').write_text(str(elements))
