"""Check that a checkpoint matches the model that it is loaded into."""

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ...errors import UserError
from ...registry import HOOKS
from ...weights import Checkpoint, fit
from ...weights.checkpoint import shapes_of
from ...weights.fit import report
from ...weights.sources import public_name


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Reject checkpoints of a different network. mmengine would load them partially.

    Resuming and testing need every tensor of the model with a matching shape. Training that starts
    from ``load_from`` may have different heads, for example for other classes. All other tensors
    must match, and position biases are resized to the window sizes of the model. Resuming also
    needs the state of the optimizer and of the schedule. Testing and resuming need the same order
    of classes.

    The tensors are renamed to the names in the model. The file may have any layout of a GC ViT
    backbone, and both the file and the model may have wrappers.
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
        found = Checkpoint.from_content(checkpoint, source)
        fitted = fit(found, _sizes(runner.model), resize=begins, heads_may_differ=begins)
        report(found, fitted)
        if not begins:
            _compare_classes(found, _classes(runner))
        # only tensors are replaced; metadata and other entries are kept
        state = checkpoint.setdefault('state_dict', {})
        for name in [name for name, value in state.items() if isinstance(value, Tensor)]:
            del state[name]
        state.update(fitted.tensors)


def _require_state(checkpoint: Mapping[str, Any], source: str, scheduled: bool) -> None:
    """Reject a checkpoint without training state. mmengine would restart the schedule."""
    needed = ['optimizer', 'message_hub', *(['param_schedulers'] if scheduled else [])]
    missing = [part for part in needed if part not in checkpoint]
    if missing:
        raise UserError(
            f'cannot resume from {source}: it lacks {", ".join(missing)}. best_*.pth, published '
            'files and files of CheckpointHook(save_optimizer=False) have no training state. Use '
            'epoch_N.pth or iter_N.pth, or start from the weights, without --resume and with '
            f'--cfg-options load_from={source}'
        )


def _classes(runner: Runner) -> tuple[str, ...]:
    """Return the class names of the dataset that is trained or tested."""
    loops = (runner._train_loop, runner._test_loop, runner._val_loop)
    loop = next((loop for loop in loops if isinstance(loop, BaseLoop)), None)
    metainfo = getattr(loop and loop.dataloader.dataset, 'metainfo', {})
    return tuple(metainfo.get('classes') or ())


def _compare_classes(checkpoint: Checkpoint, classes: tuple[str, ...]) -> None:
    """Reject a dataset in which class names of the checkpoint have other labels.

    Metrics would be wrong without an error. Other names at the same positions may be translations.
    """
    saved = checkpoint.classes
    if saved == classes or len(saved) != len(classes):  # unequal numbers: the heads do not match
        return
    moved = [i for i, name in enumerate(classes) if name in saved and saved.index(name) != i]
    if moved:
        label, name = moved[0], classes[moved[0]]
        raise UserError(
            f'{checkpoint.source} was trained with other labels than the dataset has: '
            f'{name!r} is class {saved.index(name)} there and class {label} here. Set '
            "metainfo.classes of the dataset to the checkpoint's order. If folders are the "
            'classes, their alphabetical order counts: name them as in the training data'
        )
    label = next(i for i, name in enumerate(classes) if name != saved[i])
    print_log(
        f'class names of {checkpoint.source} and of the dataset differ: class {label} is '
        f'{saved[label]!r} there and {classes[label]!r} here; their labels are compared regardless',
        'current',
        logging.WARNING,
    )


def _sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a model. For a sharded model, a collective call."""
    if not isinstance(model, FullyShardedDataParallel):
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        return shapes_of(model.state_dict())
    # only the first process has the shapes if it alone gathers the full state dict
    sizes = all_gather_object(shapes_of(model.state_dict()))
    return sizes[get_rank()] or sizes[0]
