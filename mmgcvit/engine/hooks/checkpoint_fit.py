"""Whether a checkpoint is of the model that it is loaded into."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ...errors import UserError
from ...registry import HOOKS
from ...weights import adapt_network, require_finite


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Refuses a checkpoint of another network, which mmengine would load in part and go on.

    A training that resumes, and a test, need every tensor of the model in its size. A training
    that begins from ``load_from`` may differ in its heads, as it does with other classes, but not
    in the rest. One that resumes needs the state of its optimizer and schedule, too.

    Where nothing is resumed, a GC ViT backbone may have the names of NVIDIA's detectors. Position
    biases of other windows are resized for a training that begins from ``load_from``.
    """

    # before the hooks that copy the tensors, as EMAHook
    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Compare names and sizes before the tensors are copied."""
        source = runner.cfg.get('load_from') or 'the checkpoint'
        trains = isinstance(runner.optim_wrapper, OptimWrapper)
        resumes = trains and runner.cfg.get('resume')
        state = checkpoint.get('state_dict', checkpoint)
        sizes = _sizes(runner.model)
        if resumes:
            _require_state(checkpoint, str(source), bool(runner.cfg.get('param_scheduler')))
        else:
            adapted = adapt_network(state, sizes, str(source), resize=trains)
            if adapted is not None:
                state.clear()
                state.update(adapted)
        left = compare(sizes, state, str(source), trains and not resumes)
        for name, tensor in state.items():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                require_finite(name, tensor, str(source))
        if not isinstance(runner, Runner):
            # mmengine's Runner passes over tensors of another size, FSDP ends with an error
            for name in left:
                state.pop(name, None)


def _require_state(checkpoint: Mapping[str, Any], source: str, scheduled: bool) -> None:
    """Refuse a checkpoint of weights alone, with which mmengine would start the schedule anew."""
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
    """Return the size of every tensor of a model; a collective call where it is sharded."""
    if not isinstance(model, FullyShardedDataParallel):
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        return _sizes_of(model.state_dict())
    # in all processes or, where whole tensors are gathered, in the first one alone
    sizes = all_gather_object(_sizes_of(model.state_dict()))
    return sizes[get_rank()] or sizes[0]


def _sizes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def compare(
    sizes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Any],
    source: str,
    heads_may_differ: bool,
) -> list[str]:
    """Compare a model's tensors with a checkpoint's by name and size.

    Args:
        sizes: Names and sizes of the tensors of a detector or segmentor.
        state: Names and tensors of the checkpoint.
        source: Where they come from, for messages.
        heads_may_differ: Whether tensors of heads may be of another size or missing; they are
            then named in the log.

    Returns:
        Names of these.

    Raises:
        UserError: If they do not belong together.
    """
    state = {name.removeprefix('module.'): t for name, t in state.items() if isinstance(t, Tensor)}
    wanted = {
        name: size for name, size in sizes.items() if not name.endswith('num_batches_tracked')
    }
    missing = [name for name in wanted if name not in state]
    other = [n for n, size in wanted.items() if n in state and tuple(state[n].shape) != size]
    if all(name in missing or name.startswith('backbone.') for name in wanted):
        raise UserError(
            f'{source} holds {"none" if len(missing) == len(wanted) else "the backbone alone"} of '
            f'the tensors of the model, it has names like {_sample(list(state))}, the model like '
            f'{_sample(list(wanted))}: give a checkpoint of this config; weights of a backbone '
            'alone go to model.backbone.init_cfg'
        )
    left = []
    if heads_may_differ:
        left = [name for name in (*other, *missing) if 'head' in name.partition('.')[0]]
        if left:
            print_log(
                f'{source}: {len(left)} tensors of heads have another size or are missing and keep '
                f'their initial values, as {_sample(left)}',
                logger='current',
            )
        missing, other = ([n for n in names if n not in left] for names in (missing, other))
    if other:
        raise UserError(
            f'{source} is of another model: {len(other)} tensors differ in size, as {other[0]} '
            f'with {tuple(state[other[0]].shape)}, the model needs {wanted[other[0]]}: give the '
            'config that it was trained with, or a checkpoint of this one'
        )
    if missing:
        raise UserError(
            f'{source} is of another model: {len(missing)} of {len(wanted)} tensors are missing, '
            f'as {_sample(missing)}: give the config that it was trained with, or a checkpoint of '
            'this one'
        )
    return left


def _sample(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) or 'none at all'
