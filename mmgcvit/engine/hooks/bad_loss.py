"""What becomes of a training whose loss is no longer finite."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...errors import UserError
from ...registry import HOOKS

MAX_SKIPPED = 32  # a scaler begins at 2 ** 16, and halves its scale each time


@HOOKS.register_module()
class BadLossHook(Hook):
    """Names the images of an iteration whose loss is NaN or infinite, and stops after several.

    The update of such an iteration is left out, so that the weights stay as they were; so is one
    whose gradients are not finite. A loss scaler leaves such updates out by itself: the training
    stops after 32 of them in a row, when no scale can be the reason any more. It stops at once if
    the model is spoilt all the same, as the running statistics of a BatchNorm can be. It stops
    before a checkpoint is saved, in all processes.

    Args:
        max_consecutive: At how many bad iterations without a good update between them the training
            stops.
    """

    priority = 'NORMAL'  # before CheckpointHook

    def __init__(self, max_consecutive: int = 3) -> None:
        if isinstance(max_consecutive, bool) or not isinstance(max_consecutive, int):
            raise ValueError(f'max_consecutive must be an integer, got {max_consecutive!r}')
        if max_consecutive < 1:
            raise ValueError(f'max_consecutive must be at least 1, got {max_consecutive}')
        self.max_consecutive = max_consecutive
        self._bad = 0
        self._skipped = 0
        # whether this iteration's update was good, None where there was none (accumulation)
        self._updated: bool | None = None

    def before_train(self, runner: Runner) -> None:
        """Look at gradients before each update from now on."""
        if isinstance(runner.optim_wrapper, OptimWrapper):  # not several of them in a dict
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._before_update)

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [
            p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
        ]
        # the norm at the price of a factor 1: torch before 2.6 has no other public way
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf)
        bad = (~torch.isfinite(norm)).to(torch.int32)
        all_reduce(bad, 'max')  # where each process has a part of the gradients
        self._updated = not bad
        if bad:
            for parameter in parameters:
                parameter.grad = None  # optimizers pass over such parameters

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Log an iteration with a bad loss, and end the training if it is one too many."""
        losses = {k: v.detach() for k, v in (outputs or {}).items() if 'loss' in k}
        # the sum of the others
        total = losses.get('loss')
        bad_here = total is not None and not bool(torch.isfinite(total))
        spoilt_here = bad_here and not _is_finite(runner.model)
        flags = torch.tensor([bad_here, spoilt_here], dtype=torch.int32)
        all_reduce(flags, 'max')
        bad, spoilt = flags.tolist()
        updated, self._updated = self._updated, None
        if not bad and updated is not False:
            if updated:
                self._bad = self._skipped = 0
            else:
                self._count_skipped(runner)
            return
        self._bad += 1
        iteration = runner.iter + 1
        told = _images(data_batch) if bad_here or not bad else []
        images = [name for names in all_gather_object(told) for name in names]
        what = 'the loss is not finite' if bad else 'the gradients are not finite'
        values = ', '.join(f'{k} {v.item()}' for k, v in losses.items() if not v.isfinite())
        runner.logger.warning(
            f'iteration {iteration}: {what}{f" ({values})" if values else ""}'
            f'{", its update is left out" if updated is False else ""}; {self._bad} of '
            f'{self.max_consecutive} before the training stops; images: {"; ".join(images)}'
        )
        if spoilt or self._bad >= self.max_consecutive:
            reason = (
                'the model holds values that are not finite now'
                if spoilt
                else f'bad iterations in a row: {self._bad}'
            )
            raise UserError(
                f'stopped at iteration {iteration}, {what} ({reason}); last images: '
                f'{"; ".join(images)}. The last checkpoint is untouched: look at these images and '
                'their annotations, lower optim_wrapper.optimizer.lr or set '
                'optim_wrapper.clip_grad.max_norm, then --resume'
            )

    def _count_skipped(self, runner: Runner) -> None:
        """Count an iteration without an update, unless gradients are being accumulated."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or not wrapper.should_update():
            return
        self._skipped += 1
        if self._skipped >= MAX_SKIPPED:
            raise UserError(
                f'stopped at iteration {runner.iter + 1}: the loss scaler has left out '
                f'{self._skipped} updates in a row, the gradients are not finite at any scale. '
                'Lower optim_wrapper.optimizer.lr, or train in bfloat16 with '
                'optim_wrapper.dtype=bfloat16 or without --amp, then --resume'
            )


def _is_finite(model: torch.nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _images(data_batch: Any) -> Sequence[str]:
    """Return path and id of each image of a batch, as far as its data samples have them."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    names = []
    for sample in samples or ():
        name = str(getattr(sample, 'img_path', 'an image without a path'))
        number = getattr(sample, 'img_id', None)
        names.append(name if number is None else f'{name} (id {number})')
    return names
