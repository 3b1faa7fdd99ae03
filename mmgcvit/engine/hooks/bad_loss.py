"""Handling of losses and gradients that are not finite."""

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

MAX_SKIPPED = 32  # a loss scaler starts at 2 ** 16 and halves its scale at each skipped update


@HOOKS.register_module()
class BadLossHook(Hook):
    """Skip updates with a NaN or infinite loss, and stop training after several of them.

    An iteration is bad if its loss or its gradients are not finite. Its update is skipped, so the
    weights do not change, and its images are logged. Training stops in all processes, before the
    next checkpoint is saved:

    - after ``max_consecutive`` consecutive bad iterations; a good update resets the count;
    - after 32 consecutive updates that a loss scaler skipped, because no scale helps;
    - immediately if the model itself contains values that are not finite, for example in the
      running statistics of a BatchNorm.

    Args:
        max_consecutive: Number of consecutive bad iterations after which training stops.

    Raises:
        ValueError: If ``max_consecutive`` is not an integer of at least 1.
        UserError: When training stops.
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
        # whether this iteration's gradients were finite, or None without an update (accumulation)
        self._updated: bool | None = None

    def before_train(self, runner: Runner) -> None:
        """Check gradients before each update."""
        if isinstance(runner.optim_wrapper, OptimWrapper):  # not an OptimWrapperDict
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._before_update)

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [
            p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
        ]
        # used only to compute the norm: torch before 2.6 has no other public function for it
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf)
        bad = (~torch.isfinite(norm)).to(torch.int32)
        all_reduce(bad, 'max')  # with FSDP each process has a shard of the gradients
        self._updated = not bad
        if bad:
            for parameter in parameters:
                parameter.grad = None  # optimizers skip these parameters

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Log a bad iteration, and stop training after too many of them."""
        losses = {k: v.detach() for k, v in (outputs or {}).items() if 'loss' in k}
        # mmengine's sum of all losses
        total = losses.get('loss')
        bad_here = total is not None and not bool(torch.isfinite(total))
        corrupted_here = bad_here and not _is_finite(runner.model)
        flags = torch.tensor([bad_here, corrupted_here], dtype=torch.int32)
        all_reduce(flags, 'max')
        bad, corrupted = flags.tolist()
        updated, self._updated = self._updated, None
        if not bad and updated is not False:
            if updated:
                self._bad = self._skipped = 0
            else:
                self._count_skipped(runner)
            return
        self._bad += 1
        iteration = runner.iter + 1
        own = _images(data_batch) if bad_here or not bad else []
        images = [name for names in all_gather_object(own) for name in names]
        what = 'the loss is not finite' if bad else 'the gradients are not finite'
        values = ', '.join(f'{k} {v.item()}' for k, v in losses.items() if not v.isfinite())
        runner.logger.warning(
            f'iteration {iteration}: {what}{f" ({values})" if values else ""}'
            f'{", update skipped" if updated is False else ""} (bad iteration {self._bad} of '
            f'{self.max_consecutive} before training stops); images: {"; ".join(images)}'
        )
        if corrupted or self._bad >= self.max_consecutive:
            reason = (
                'the model now contains values that are not finite'
                if corrupted
                else f'consecutive bad iterations: {self._bad}'
            )
            raise UserError(
                f'stopped at iteration {iteration}: {what} ({reason}); last images: '
                f'{"; ".join(images)}. The last checkpoint is not affected: check these images and '
                'their annotations, lower optim_wrapper.optimizer.lr or set '
                'optim_wrapper.clip_grad.max_norm, then --resume'
            )

    def _count_skipped(self, runner: Runner) -> None:
        """Count an iteration whose update the loss scaler skipped."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or not wrapper.should_update():
            return
        self._skipped += 1
        if self._skipped >= MAX_SKIPPED:
            raise UserError(
                f'stopped at iteration {runner.iter + 1}: the loss scaler has skipped '
                f'{self._skipped} consecutive updates, because the gradients are not finite at any '
                'scale. Lower optim_wrapper.optimizer.lr, or train in bfloat16 with '
                'optim_wrapper.dtype=bfloat16 or without --amp, then --resume'
            )


def _is_finite(model: torch.nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _images(data_batch: Any) -> Sequence[str]:
    """Return the path and, if available, the id of each image of a batch."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    names = []
    for sample in samples or ():
        name = str(getattr(sample, 'img_path', 'image without a path'))
        number = getattr(sample, 'img_id', None)
        names.append(name if number is None else f'{name} (id {number})')
    return names
