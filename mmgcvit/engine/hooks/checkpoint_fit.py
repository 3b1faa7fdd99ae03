"""Whether a checkpoint belongs to the model that it is loaded into."""

from collections.abc import Mapping
from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ...errors import UserError
from ...registry import HOOKS
from ...weights import Checkpoint, fit
from ...weights.checkpoint import shapes_of, tensors_of
from ...weights.fit import report
from ...weights.sources import public_name


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuse a checkpoint of another network, which mmengine would load in part and go on.

    A resumed training and a test need every tensor of the model in its size. A training that begins
    from ``load_from`` may differ in its heads, for example for other classes, but not in the rest,
    and position biases are resized to its windows. A resumed training needs the state of its
    optimizer and schedule, too.

    The tensors get the model's own names, whatever the layout of a GC ViT backbone in the file and
    whatever wrappers the file and the model have.
    """

    # before the hooks that copy the tensors, such as EMAHook
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Fit the checkpoint to the model before its tensors are copied."""
        source = public_name(str(runner.cfg.get('load_from') or 'the checkpoint'))
        trains = isinstance(runner.optim_wrapper, OptimWrapper)
        resumes = trains and bool(runner.cfg.get('resume'))
        if resumes:
            _require_state(checkpoint, source, bool(runner.cfg.get('param_scheduler')))
        begins = trains and not resumes
        meta = checkpoint.get('meta')
        found = Checkpoint.from_state(
            tensors_of(checkpoint, source), source, meta=meta if isinstance(meta, dict) else {}
        )
        fitted = fit(found, _sizes(runner.model), resize=begins, heads_may_differ=begins)
        report(found, fitted)
        # in place: the metadata and what is not a tensor stay
        state = checkpoint.setdefault('state_dict', {})
        for name in [name for name, value in state.items() if isinstance(value, Tensor)]:
            del state[name]
        state.update(fitted.tensors)


def _require_state(checkpoint: Mapping[str, Any], source: str, scheduled: bool) -> None:
    """Refuse a checkpoint of weights alone, with which mmengine would restart the schedule."""
    needed = ['optimizer', 'message_hub', *(['param_schedulers'] if scheduled else [])]
    missing = [part for part in needed if part not in checkpoint]
    if missing:
        raise UserError(
            f'{source} cannot be resumed from: it has no {", ".join(missing)}, which best_*.pth, '
            'published files and those of CheckpointHook(save_optimizer=False) lack: resume from '
            'an epoch_N.pth or iter_N.pth, or begin from the weights alone, without --resume and '
            f'with --cfg-options load_from={source}'
        )


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model; a collective call if it is sharded."""
    if not isinstance(model, FullyShardedDataParallel):
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        return shapes_of(model.state_dict())
    # of all processes or, where the first one alone gathers whole tensors, of that one
    sizes = all_gather_object(shapes_of(model.state_dict()))
    return sizes[get_rank()] or sizes[0]
