"""Handling of losses and gradients that are not finite."""

import functools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ...errors import UserError
from ...registry import HOOKS
from ..failed_step import Step, images_of, write_failed_step
from ..reduced_flags import ReducedFlags
from .failed_step import HoldStepHook

MAX_SKIPPED = 32  # a loss scaler starts at 2 ** 16 and halves its scale at each skipped update
FUSED = (Adam, AdamW, SGD)  # their fused kernels skip an update if ``found_inf`` is 1
LOWER_RATE = (
    'lower optim_wrapper.optimizer.lr and start again from the weights of the last checkpoint '
    '(load_from=CHECKPOINT), because --resume keeps the learning rate of the checkpoint'
)
HOST_DECIDES = ('cpu',)  # devices on which the host decides about an update without waiting


@HOOKS.register_module()
class BadLossHook(HoldStepHook):
    """Skip updates with a NaN or infinite loss, and stop training after several of them.

    An iteration is bad if its loss or its gradients are not finite. Its update is skipped, so the
    weights do not change, and its images are logged. The first bad iteration is written to a file
    for ``tools/replay.py``. Training stops in all processes, before the next checkpoint is saved:

    - after ``max_consecutive`` consecutive bad iterations; a good update resets the count;
    - after 32 consecutive updates that a loss scaler skipped, because no scale helps;
    - immediately if the model itself contains values that are not finite, for example in the
      running statistics of a BatchNorm.

    A GPU does not wait for the host: torch's Adam, AdamW and SGD with ``fused=True`` skip an update
    on the device, and the iteration is reported one iteration later, but before a checkpoint is
    saved. Other optimizers cannot skip an update by themselves. On a GPU, the host then waits for
    the gradients once per update, as torch's GradScaler does. So does the first update of SGD with
    momentum, whose kernel would leave the momentum uninitialized.

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
        self._written = False
        self._flags = ReducedFlags('cpu')
        # steps whose flags are not available yet, and whether they ended with an update
        self._unreported: deque[tuple[Step, bool]] = deque()
        # Whether this iteration's gradients are not finite and whether the loss scaler skips its
        # update, or None without an update (accumulation).
        self._update: tuple[Tensor, Tensor | bool] | None = None
        self._found_by_scaler: Tensor | None = None
        # The optimizer whose updates are checked, and its own method.
        self._checked: tuple[Optimizer, Callable[..., Any]] | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the numbers of consecutive bad iterations and skipped updates."""
        return {'bad': self._bad, 'skipped': self._skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the numbers from :meth:`state_dict`."""
        self._bad, self._skipped = state_dict['bad'], state_dict['skipped']

    def before_train(self, runner: Runner) -> None:
        """Check gradients before each update."""
        self._flags = ReducedFlags(next(iter(runner.model.parameters())).device)
        self._unreported.clear()
        self._stop_checking()  # an earlier training with this hook
        if isinstance(runner.optim_wrapper, OptimWrapper):  # not an OptimWrapperDict
            optimizer = runner.optim_wrapper.optimizer
            _keep_fused(optimizer)
            self._check_updates(optimizer)
        self._report_before_checkpoints(runner)

    def _check_updates(self, optimizer: Optimizer) -> None:
        # not by hooks of the optimizer, which torch.compile of PyTorch 2.1 disables
        step = optimizer.step

        @functools.wraps(step)
        def checked(*args: Any, **kwargs: Any) -> Any:
            self._before_update(optimizer)
            result = step(*args, **kwargs)
            self._after_update(optimizer)
            return result

        optimizer.step = checked
        self._checked = optimizer, step

    def _stop_checking(self) -> None:
        if self._checked is not None:
            optimizer, step = self._checked
            optimizer.step = step
            self._checked = None

    def _report_before_checkpoints(self, runner: Runner) -> None:
        # All processes call save_checkpoint, but before_save_checkpoint runs only in the first one,
        # and reporting is a collective operation.
        save = runner.save_checkpoint

        @functools.wraps(save)
        def reported(*args: Any, **kwargs: Any) -> None:
            self._flush(runner)
            save(*args, **kwargs)

        runner.save_checkpoint = reported

    def _before_update(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [
            p for group in optimizer.param_groups for p in group['params'] if p.grad is not None
        ]
        # Used only to compute the norm: torch before 2.6 has no other public function for it. The
        # squares of gradients that a loss scaler has scaled could overflow.
        scaled = getattr(optimizer, 'grad_scale', None) is not None
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf, math.inf if scaled else 2.0)
        bad = (~torch.isfinite(norm)).to(torch.int32)
        all_reduce(bad, 'max')  # with FSDP each process has a shard of the gradients
        self._update = bad, False
        self._found_by_scaler = found = getattr(optimizer, 'found_inf', None)
        if found is not None:
            by_scaler = (found > 0).to(torch.int32)
            self._update = bad * (1 - by_scaler), by_scaler
            bad = torch.maximum(bad, by_scaler)
        if bad.device.type not in HOST_DECIDES and _skips_on_device(optimizer):
            optimizer.found_inf = bad.float()  # kernels compare it with 1
        elif bad:
            for parameter in parameters:
                parameter.grad = None  # optimizers skip these parameters

    def _after_update(self, optimizer: Optimizer, *_: Any) -> None:
        if self._found_by_scaler is not None:
            optimizer.found_inf = self._found_by_scaler  # GradScaler removes it
            self._found_by_scaler = None
        elif hasattr(optimizer, 'found_inf'):
            del optimizer.found_inf

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Log a bad iteration, and stop training after too many of them."""
        losses = {k: v.detach() for k, v in (outputs or {}).items() if 'loss' in k}
        total = losses.get('loss')
        bad_loss = False if total is None else ~torch.isfinite(total)
        update, self._update = self._update, None
        if update is None:
            skipped = _is_due(runner)  # by a loss scaler, which did not call the optimizer
            flags = (bad_loss, False, skipped)
        else:
            flags = (bad_loss, *update)
        assert self.step is not None  # of before_train_iter
        self.step.losses = losses
        self._unreported.append((self.step, update is not None))
        reduced = self._flags.exchange(*flags)
        if reduced is not None:
            self._report(runner, *reduced)

    def after_train(self, runner: Runner) -> None:
        """Report the last iteration."""
        self._flush(runner)
        self._stop_checking()
        super().after_train(runner)

    def _flush(self, runner: Runner) -> None:
        flags = self._flags.flush()
        if flags is not None:
            self._report(runner, *flags)

    def _report(self, runner: Runner, bad_loss: int, bad_gradients: int, skipped: int) -> None:
        """Act on the flags of the oldest iteration, in all processes alike."""
        step, updated = self._unreported.popleft()
        if not bad_loss and not bad_gradients:
            if skipped:
                self._count_skipped(step.iteration)
            elif updated:
                self._bad = self._skipped = 0
            return
        self._bad += 1
        bad_here = not _loss_is_finite(step)
        own: tuple[list[str], bool, str | None] = [], False, None
        if bad_here or not bad_loss:
            line = None
            if not self._written:
                # by this update or, on a GPU, by the one after it
                changed = (updated and not bad_gradients) or step is not self.step
                line = write_failed_step(
                    runner, step, 'loss' if bad_loss else 'gradients', weights_changed=changed
                )
            own = _images(step.batch), bad_here and not _is_finite(runner.model), line
        self._written = True
        gathered = all_gather_object(own)
        images = [name for names, _, _ in gathered for name in names]
        what = 'the loss is not finite' if bad_loss else 'the gradients are not finite'
        values = ', '.join(f'{k} {v.item()}' for k, v in step.losses.items() if not v.isfinite())
        runner.logger.warning(
            f'iteration {step.iteration}: {what}{f" ({values})" if values else ""}'
            f'{", update skipped" if bad_gradients else ""} (bad iteration {self._bad} of '
            f'{self.max_consecutive} before training stops); images: {"; ".join(images)}'
        )
        for _, _, line in gathered:
            if line is not None:
                runner.logger.warning(line)
        corrupted = any(corrupted_there for _, corrupted_there, _ in gathered)
        if corrupted or self._bad >= self.max_consecutive:
            reason = (
                'the model now contains values that are not finite'
                if corrupted
                else f'consecutive bad iterations: {self._bad}'
            )
            last = f'; last images: {"; ".join(images)}' if images else ''
            raise UserError(
                f'stopped at iteration {step.iteration}: {what} ({reason}){last}. The last '
                'checkpoint is not affected: check these images and their annotations or set '
                f'optim_wrapper.clip_grad.max_norm, then --resume; or {LOWER_RATE}'
            )

    def _count_skipped(self, iteration: int) -> None:
        """Count an iteration whose update the loss scaler skipped."""
        self._skipped += 1
        if self._skipped >= MAX_SKIPPED:
            raise UserError(
                f'stopped at iteration {iteration}: the loss scaler has skipped '
                f'{self._skipped} consecutive updates, because the gradients are not finite at any '
                'scale. Train in bfloat16 (optim_wrapper.dtype=bfloat16) or without --amp, then '
                f'--resume; or {LOWER_RATE}'
            )


def _is_due(runner: Runner) -> bool:
    """Whether this iteration ends with an update, not with accumulated gradients."""
    wrapper = runner.optim_wrapper
    return isinstance(wrapper, OptimWrapper) and wrapper.should_update()


def _skips_on_device(optimizer: Optimizer) -> bool:
    """Whether an optimizer skips an update by itself if its ``found_inf`` is 1."""
    if type(optimizer) not in FUSED:
        return False
    for group in optimizer.param_groups:
        if not group.get('fused'):
            return False
        if group.get('momentum') and any(
            optimizer.state.get(p, {}).get('momentum_buffer') is None
            for p in group['params']
            if p.grad is not None
        ):
            return False
    return True


def _keep_fused(optimizer: Optimizer) -> None:
    """Restore the optimizer's ``fused`` setting, which a checkpoint of another run replaces."""
    groups = [group for group in optimizer.param_groups if 'fused' in group]
    if any(group['fused'] != optimizer.defaults['fused'] for group in groups):
        for group in groups:
            group['fused'] = optimizer.defaults['fused']
        optimizer.load_state_dict(optimizer.state_dict())  # moves the steps to the right device


def _is_finite(model: torch.nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _loss_is_finite(step: Step) -> bool:
    total = step.losses.get('loss')  # mmengine's sum of all losses
    return total is None or bool(torch.isfinite(total))


def _images(data_batch: Any) -> list[str]:
    """Return the path and, if available, the id of each image of a batch."""
    names = []
    for image in images_of(data_batch):
        name = str(image['img_path'] or 'image without a path')
        number = image['img_id']
        names.append(name if number is None else f'{name} (id {number})')
    return names
