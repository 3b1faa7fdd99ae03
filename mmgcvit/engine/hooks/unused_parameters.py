"""Parameters that should learn and get no gradient."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ...models.gcvit import GCViT
from ...registry import HOOKS
from ...task import inner_model
from ..wrappers import unwrapped

SHOWN = 8


@HOOKS.register_module()
class UnusedParametersHook(Hook):
    """Report parameters that the first update of a training leaves without a gradient.

    DistributedDataParallel stops in the second iteration if there are any, and reports only their
    indices. With ``find_unused_parameters``, or in one process, they keep their initial values,
    which is a warning. After the first update, this hook does nothing. It does not support FSDP,
    which joins parameters, or several optimizers.

    Attributes:
        checked: Whether the first update was checked.
        unused: Names of the parameters without a gradient.
        report: These names and the remedy, empty if there are none.

    Raises:
        UserError: If DistributedDataParallel would stop in the next iteration.
    """

    priority = 'HIGH'  # before CheckpointHook

    def __init__(self) -> None:
        self.checked = False
        self.unused: list[str] = []
        self.report = ''
        self._waiting: set[str] = set()
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Observe the gradients until the first update."""
        model = runner.model
        if isinstance(model, FullyShardedDataParallel) or not isinstance(
            runner.optim_wrapper, OptimWrapper
        ):
            return
        for name, parameter in unwrapped(model).named_parameters():
            if parameter.requires_grad:
                self._waiting.add(name)
                self._handles.append(parameter.register_hook(partial(self._learns, name)))

    def _learns(self, name: str, gradient: Any) -> None:
        self._waiting.discard(name)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the gradients after the first update."""
        if not self._handles or not runner.optim_wrapper.should_update():
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.checked = True
        model = runner.model
        # with find_unused_parameters, processes may use different parameters
        waiting = set.intersection(*all_gather_object(self._waiting))
        # named_parameters gives the order of the model
        self.unused = [n for n, _ in unwrapped(model).named_parameters() if n in waiting]
        if not self.unused:
            return
        self.report = (
            f'{len(self.unused)} parameters get no gradient ({_shortened(self.unused)}): '
            f'{remedy(runner.cfg, unwrapped(model), self.unused)}'
        )
        if isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
            raise UserError(f'{self.report}, or set find_unused_parameters=True, which is slower')
        runner.logger.warning(self.report)


def remedy(cfg: Any, model: nn.Module, unused: Sequence[str]) -> str:
    """Return what to change so that no parameter is without a gradient.

    Args:
        cfg: Config of the training.
        model: Its model, without wrappers.
        unused: Names of the parameters.
    """
    texts, rest = [], list(unused)
    for name, module in model.named_modules():
        if not isinstance(module, GCViT):
            continue
        prefix = f'{name}.norm' if name else 'norm'
        outputs = [i for i in module.out_indices if f'{prefix}{i}.weight' in rest]
        if outputs and len(outputs) < len(module.out_indices):
            rest = [n for n in rest if not n.startswith(tuple(f'{prefix}{i}.' for i in outputs))]
            texts.append(_used_outputs(cfg, name, module, outputs))
    if rest:
        texts.append(
            f'remove the modules of {_shortened(rest)} from the model, or freeze them '
            '(requires_grad=False)'
        )
    return '; '.join(texts)


def _used_outputs(cfg: Any, name: str, backbone: GCViT, outputs: Sequence[int]) -> str:
    """Return the settings with which a backbone has only the outputs that are used."""
    before = list(backbone.out_indices)
    kept = [i for i in before if i not in outputs]
    texts = [f'model.{name}.out_indices={tuple(kept)}']
    neck = inner_model(cfg).get('neck')
    neck = neck if isinstance(neck, dict) else {}
    channels = neck.get('in_channels')
    if isinstance(channels, list | tuple) and len(channels) == len(before):
        left = [c for i, c in zip(before, channels, strict=True) if i in kept]
        texts.append(f'model.neck.in_channels={left}')
    start = neck.get('start_level') or 0
    if start > 0:
        fewer = sum(i in outputs for i in before[:start])
        texts.append(f'model.neck.start_level={start - fewer}')
    for head, config in _heads(inner_model(cfg)):
        index = config.get('in_index')
        if not neck and isinstance(index, int | list | tuple):
            # from the end, an index may change too
            places = [before[i] for i in ([index] if isinstance(index, int) else index)]
            after = [kept.index(i) for i in places if i in kept]
            texts.append(f'{head}.in_index={after[0] if isinstance(index, int) else after}')
    settings = ' '.join(texts).replace(', ', ',')  # without spaces, for the command line
    return f'nothing uses output {", ".join(map(str, outputs))} of the backbone: set {settings}'


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield option and config of each head of a segmentor."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        if isinstance(heads, list | tuple):
            yield from ((f'model.{name}.{i}', head) for i, head in enumerate(heads))
        else:
            yield f'model.{name}', heads


def _shortened(names: Sequence[str]) -> str:
    more = f' and {len(names) - SHOWN} others' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more
