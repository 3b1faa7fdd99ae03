"""Run a training step again from a file of :mod:`mmgcvit.engine.failed_step`.

The file may come from an untrusted source. It is read without executing code, and the
model is built only from classes that the libraries and this package have registered.
"""

import importlib
import math
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_type_hints

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    MODELS,
    OPTIM_WRAPPERS,
    TASK_UTILS,
    WEIGHT_INITIALIZERS,
    Registry,
)
from mmengine.utils import get_object_from_string
from torch import Tensor, nn

from ..errors import UserError, describe, one_line, printable
from ..registry import set_default_scope
from ..weights import read_checkpoint
from ..weights.checkpoint import tensors_of
from .adaptations import adapt_cpu, adapt_precision
from .config import check_checkpoint
from .device import Machine, choose_device, require_device
from .failed_step import (
    FailedStep,
    RandomState,
    ReplayedConfig,
    damaged,
    read_failed_step,
    set_random_state,
    versions,
)
from .plain_data import from_plain

# parts of the optimizer wrapper that are replaced
_OPTIMIZER = ('optimizer', 'constructor', 'paramwise_cfg')
_PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmgcvit', 'torch')
# arguments of classes such as HuggingFaceClassifier and TIMMBackbone
_OF_FOREIGN_MODELS = (
    'model_name',
    'name_or_path',
    'pretrained_model_name_or_path',
    'trust_remote_code',
)
_IDENTIFIER = re.compile(r'[A-Za-z_]\w*')


def replay(
    path: str | Path,
    device: str | None = None,
    checkpoint: str | None = None,
    allow_imports: bool = False,
) -> bool:
    """Run a step again that failed, with anomaly detection, and print what is found.

    Args:
        path: File from :func:`~mmgcvit.engine.failed_step.write_failed_step`.
        device: 'cpu', 'cuda' or 'cuda:N'. Defaults to the GPU if there is one.
        checkpoint: Checkpoint whose weights replace the weights in the file.
        allow_imports: Whether to import the modules of ``custom_imports`` and to use any class that
            the file names. This can execute code that the file chooses.

    Returns:
        Whether the step failed again in the same way.

    Raises:
        UserError: If the file cannot be read, or its model cannot be built.
    """
    content = read_failed_step(path)
    device = require_device(device) if device else choose_device()
    batch = _rebuilt(content, path)
    _print_head(content)
    cfg = _config(content['config'], path, allow_imports)
    model, wrapper = _build(cfg, path, Machine(torch.device(device).type))
    _load_weights(model, content, checkpoint, path)
    _load_scaler(wrapper, content, path)
    model.to(device).train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with _first_not_finite(model) as places:
            losses = _run(model, wrapper, batch, content['random_state'])
    except Exception as error:  # the step may have failed with any error
        return _compare_errors(content, error)
    _print_losses(losses)
    norms = _gradient_norms(model, wrapper)
    _say('gradient norms: ' + ', '.join(f'{name} {norm:.4g}' for name, norm in norms.items()))
    bad_loss = not all(torch.isfinite(loss) for loss in losses.values())
    bad_gradients = not all(math.isfinite(norm) for norm in norms.values())
    for place in places:
        _say(f'first module whose output is not finite: {place}')
    if bad_loss or bad_gradients:
        model.load_state_dict(weights)  # running statistics may have changed
        _print_anomaly(model, wrapper, content)
    expected = {'loss': bad_loss, 'gradients': bad_gradients}.get(content['reason'], False)
    print('reproduced' if expected else 'not reproduced')
    return expected


def _say(line: str) -> None:
    """Print one line, which may contain text from the file."""
    print(printable(line).replace('\n', '\\n'))


def _rebuilt(content: FailedStep, path: str | Path) -> Any:
    """Return the batch, and set the random state to check that it can be set.

    Raises:
        UserError: If they are damaged.
    """
    try:
        set_random_state(content['random_state'])
    except Exception as error:  # each generator raises another type
        raise damaged(path, f'random_state: {describe(error)}') from error
    try:
        return from_plain(content['batch'])
    except UserError as error:
        raise damaged(path, str(error)) from error


def _print_head(content: FailedStep) -> None:
    what = {'loss': 'the loss was not finite', 'gradients': 'the gradients were not finite'}.get(
        content['reason'], f'it raised {content["error_type"]}'
    )
    rank = f' of process {content["rank"]}' if content['processes'] > 1 else ''
    _say(f'iteration {content["iteration"]}{rank}: {what}')
    batch = content['batch']
    inputs: Any = batch.get('inputs') if isinstance(batch, dict) else None
    # images of equal size may be one tensor
    has_items = isinstance(inputs, list | tuple) or (isinstance(inputs, Tensor) and inputs.dim())
    finite = [_all_finite(item) for item in inputs] if has_items else []
    no_input = [True] * len(content['images'])
    for image, is_finite in zip(content['images'], [*finite, *no_input], strict=False):
        _say(
            f'image: {image["img_path"]} (id {image["img_id"]})'
            + ('' if is_finite else ', not finite')
        )
    if content['losses']:
        _say(f'losses in the training: {_in_one_line(content["losses"])}')
    here = versions()
    for name, version in content['versions'].items():
        if here.get(name, version) != version:
            _say(f'different version: {name} {version} in the training, {here[name]} here')
    if content['weights_changed']:
        print('the weights may have been updated between the step and the writing of the file')


def _in_one_line(losses: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.4g}' for name, value in losses.items())


def _print_losses(losses: Mapping[str, Tensor]) -> None:
    _say(f'losses: {_in_one_line({name: loss.item() for name, loss in losses.items()})}')
    if bad := [name for name, loss in losses.items() if not torch.isfinite(loss)]:
        _say(f'not finite: {", ".join(bad)}')


def _config(plain: ReplayedConfig, path: str | Path, allow_imports: bool) -> Config:
    imports = (plain.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    foreign = [module for module in imports if module.partition('.')[0] not in _PACKAGES]
    if foreign and not allow_imports:
        raise UserError(
            f'{path} needs the modules {", ".join(foreign)} (custom_imports of its config), which '
            'would execute code: if you trust the file, pass --allow-imports'
        )
    for module in imports:
        try:
            importlib.import_module(module)
        except Exception as error:  # a module can raise anything
            raise UserError(
                f'{path} needs the module {module} (custom_imports of its config), which cannot be '
                f'imported ({describe(error)}): install its package, or add its folder to '
                'PYTHONPATH'
            ) from error
    # custom_imports were handled above
    keys = [key for key in get_type_hints(ReplayedConfig) if key != 'custom_imports']
    try:
        cfg = Config({k: v for k, v in plain.items() if k in keys and v is not None})
        for key in _OPTIMIZER:
            (cfg.get('optim_wrapper') or {}).pop(key, None)
        if not allow_imports:
            _check_parts(cfg.to_dict(), path)
    except UserError:
        raise
    except Exception as error:  # for example, a config of unlimited depth
        raise damaged(path, f'config: {describe(error)}') from error
    return cfg


def _check_parts(node: Any, path: str | Path, key: str = '') -> None:
    """Refuse a config that could execute code when its model is built.

    Raises:
        UserError: If a type is not a registered class of the libraries or of this package, or a
            text has parentheses: the libraries evaluate some texts as Python.
    """
    if isinstance(node, Mapping):
        for name, item in node.items():
            if name in _OF_FOREIGN_MODELS:
                raise UserError(
                    f'{path} was not used because it could execute code: its config has {name}, '
                    'with which transformers and timm load models from the internet; if you trust '
                    'the file, pass --allow-imports'
                )
            _check_parts(item, path, str(name))
    elif isinstance(node, list | tuple):
        for item in node:
            _check_parts(item, path, key)
    elif isinstance(node, str):
        is_scope = key in ('default_scope', '_scope_')
        allowed = '(' not in node
        if is_scope:
            allowed = node in _PACKAGES
        elif key == 'type' and not _IDENTIFIER.fullmatch(node):
            allowed = _is_registered(node)
        if not allowed:
            raise UserError(
                f'{path} was not used because it could execute code: its config has {key} = '
                f'{node[:100]!r}, and allowed are classes that {", ".join(_PACKAGES)} register, '
                'and text without parentheses; if you trust the file, pass --allow-imports'
            )


def _is_registered(kind: str) -> bool:
    """Whether a scoped name or an import path leads to a class in one of the registries."""
    parts = kind.split('.')
    if parts[0] not in _PACKAGES or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        return False
    with suppress(ImportError):  # mmcv and torch have no registries of their own
        importlib.import_module(f'{parts[0]}.registry')  # adds its registries to the tree
    registries = list(_registries())
    for each in registries:
        each.import_from_location()
    if len(parts) == 2 and any(
        each.scope == parts[0] and parts[1] in each.module_dict for each in registries
    ):
        return True
    try:
        found = get_object_from_string(kind)
    except Exception:  # an import can raise anything
        return False
    return isinstance(found, type) and any(
        found is other for each in registries for other in each.module_dict.values()
    )


def _registries() -> Iterator[Registry]:
    # of parts of models: building a class of RUNNERS or VISBACKENDS, for example, writes files
    roots = [MODELS, TASK_UTILS, OPTIM_WRAPPERS, WEIGHT_INITIALIZERS]
    while roots:
        each = roots.pop()
        yield each
        roots += each.children.values()


def _build(cfg: Config, path: str | Path, machine: Machine) -> tuple[nn.Module, OptimWrapper]:
    try:
        adapt_precision(cfg, machine)
        adapt_cpu(cfg, machine)
        set_default_scope(cfg.get('default_scope'))
        model_cfg = cfg.model
        if cfg.get('data_preprocessor') is not None:  # as mmengine's Runner does
            model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(model_cfg)
        # its update is not used
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        settings = dict(cfg.get('optim_wrapper') or {})
        settings.setdefault('type', 'OptimWrapper')
        wrapper = OPTIM_WRAPPERS.build(settings, default_args=dict(optimizer=optimizer))
    except Exception as error:  # the libraries can raise anything for a config
        raise UserError(
            f'the model of {path} cannot be built ({describe(error)}): install the versions of the '
            'training; if its classes are your own, pass --allow-imports'
        ) from error
    # keep the gradients, and leave the weights as they are
    wrapper.update_params = lambda loss: wrapper.backward(wrapper.scale_loss(loss))
    return model, wrapper


def _load_weights(
    model: nn.Module, content: FailedStep, checkpoint: str | None, path: str | Path
) -> None:
    weights = content['weights']
    if checkpoint is not None:
        loaded = read_checkpoint(check_checkpoint(checkpoint))
        weights = tensors_of(loaded, checkpoint)
    if weights is None:
        raise UserError(
            f'{path} has no weights, because they could not be read after the error or are '
            'sharded: pass the last checkpoint before the error with --checkpoint'
        )
    try:
        model.load_state_dict(weights)
    except Exception as error:  # entries that are not tensors raise several types
        raise UserError(
            f'the weights of {checkpoint or path} do not fit the model ({one_line(error)}): '
            "install the versions of the training, or pass one of the training's checkpoints with "
            '--checkpoint'
        ) from error


def _load_scaler(wrapper: OptimWrapper, content: FailedStep, path: str | Path) -> None:
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is not None and content['loss_scaler']:
        try:
            scaler.load_state_dict(content['loss_scaler'])
        except Exception as error:  # missing entries and wrong values raise several types
            raise damaged(path, f'loss_scaler: {describe(error)}') from error


def _run(
    model: nn.Module, wrapper: OptimWrapper, batch: Any, random_state: RandomState
) -> dict[str, Tensor]:
    """Compute losses and gradients of the batch, as in the training."""
    model.zero_grad()
    set_random_state(random_state)
    outputs = model.train_step(batch, wrapper)
    return {name: value.detach() for name, value in outputs.items() if 'loss' in name}


def _gradient_norms(model: nn.Module, wrapper: OptimWrapper) -> dict[str, float]:
    """Return the norm of the gradients of each top-level part that has gradients."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    scale = 1.0 if scaler is None else scaler.get_scale()
    norms = {}
    for name, part in model.named_children():
        gradients = [p.grad.norm() for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[name] = torch.stack(gradients).norm().item() / scale
    return norms


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list, which then has the first module whose output is not finite, if there is one."""
    places: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def check(
            module: nn.Module,
            args: tuple,
            kwargs: dict[str, Any],
            outputs: Any,
            name: str = name or 'the model',
        ) -> None:
            if not places and not _all_finite(outputs):
                inputs_too = ', whose inputs are not finite either'
                if _all_finite(args) and _all_finite(kwargs):
                    inputs_too = ''
                places.append(f'{name} ({type(module).__name__}){inputs_too}')

        handles.append(module.register_forward_hook(check, with_kwargs=True))
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def _all_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return True
    return all(_all_finite(item) for item in value)


def _print_anomaly(model: nn.Module, wrapper: OptimWrapper, content: FailedStep) -> None:
    """Run the step with anomaly detection, and print the operation that it finds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')  # detect_anomaly warns, too
        try:
            with torch.autograd.detect_anomaly():
                _run(model, wrapper, from_plain(content['batch']), content['random_state'])
        except RuntimeError as error:
            _say(f'anomaly detection: {one_line(error)}')
            for warning in caught:
                if 'forward call' in str(warning.message):
                    print(printable(_last_frames(str(warning.message))))
            return
    print('anomaly detection: no operation of the backward pass returned NaN')


def _compare_errors(content: FailedStep, error: Exception) -> bool:
    print(printable(_last_frames(''.join(traceback.format_tb(error.__traceback__)))))
    _say(f'error: {describe(error)}')
    same = content['reason'] == 'error' and content['error_type'] == type(error).__name__
    print('reproduced' if same else 'not reproduced')
    return same


def _last_frames(text: str, number: int = 4) -> str:
    """Return the last frames of the text of a traceback, without those of nn.Module's calls."""
    frames = re.findall(r'  File "[^"]+", line .*\n    .*', text)
    return '\n'.join([f for f in frames if 'nn/modules/module.py' not in f][-number:])
