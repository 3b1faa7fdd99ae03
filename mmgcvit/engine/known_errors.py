"""Errors of the libraries that the user can correct, explained on one line.

The libraries raise them deep inside a call. The frames of the traceback contain what the message
lacks: the config, and the class and the settings that were being built.
"""

import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import Registry
from torch import nn

from ..errors import UserError, close_names, describe, did_you_mean, one_line, place
from ..installed import missing_library
from .encodings import encoding_fault
from .kinds import mismatch, parameters
from .options import walk

UNEXPECTED = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'")
MISSING = re.compile(r'(\w+)(?:\.__init__)?\(\) missing \d+ required .*?arguments?: (.+)')
NO_TYPE = re.compile(r'(\S+) is not in the (.+?) registry')
NO_NUMPY = re.compile(r"module 'numpy' has no attribute '(\w+)'")
# of packages whose release on PyPI does not work with NumPy 1.24 and later
REPLACED = {
    'lvis': 'pip install --force-reinstall --no-deps '
    'git+https://github.com/lvis-dataset/lvis-api.git'
}
WORKER_KILLED = re.compile(r'DataLoader worker .*(is killed by signal: [^.]*|exited unexpectedly)')
IN_WORKER = f'{UserError.__module__}.{UserError.__qualname__}: '
SHARED_MEMORY = (
    'enlarge /dev/shm (docker run --shm-size=8g), or reduce num_workers of the dataloaders'
)


def known_error(error: BaseException) -> str | None:
    """Return an error that the user can correct on one line with its remedy, or None.

    Args:
        error: An exception that was caught: a UserError, also one of a data worker, or an error of
            the libraries, for example that a class does not have an argument.
    """
    if isinstance(error, UserError):
        # a tool that cannot build the model raised it; the place in the config is more specific
        cause = _first(MISTAKES, error.__cause__) if error.__cause__ else None
        if cause and cause not in str(error):
            return cause
        # torch raises an error of a data worker again with its traceback as the text
        return str(error).rpartition(IN_WORKER)[2].strip()
    return _first((*FAILURES, _kind, *MISTAKES, _named_value), error)


def package_error(error: BaseException) -> str | None:
    """Return an error of a package that is missing or too old, as :func:`known_error` does."""
    return _first((_package, _numpy), error)


def location(error: BaseException) -> str:
    """Return where an exception was raised: the part of the model (if any), file and line."""
    owners = (frame.f_locals.get('self') for frame in _frames(error))
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    names = {part: name for name, part in modules[-1].named_modules()} if modules else {}
    name = next((names[module] for module in modules if names.get(module)), None)
    # DistributedDataParallel and test-time augmentation wrap the model as their module
    return f'model.{name.removeprefix("module.")}, {place(error)}' if name else place(error)


def _first(
    explanations: Iterable[Callable[[BaseException], str | None]], error: BaseException
) -> str | None:
    texts = (explain(error) for explain in explanations)
    return next((text for text in texts if text), None)


def _text(error: BaseException | None, limit: int = 10_000) -> str:
    """Return the text of an error, of a data worker's error without the traceback in it."""
    text = str(error)
    if 'in DataLoader worker process' in text:
        text = text.strip().rpartition('\n')[2]
    return one_line(text, limit)


def _memory(error: BaseException) -> str | None:
    text = _text(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or 'CUDA out of memory' in text:
        needed = re.search(r'Tried to allocate [\d.]+ \w+', text)
        return (
            f'the GPU is out of memory ({needed[0] if needed else "CUDA out of memory"}): reduce '
            'batch_size of the dataloader (optim_wrapper.accumulative_counts keeps the images per '
            'update), add --amp, or set model.backbone.recompute=block'
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return (
            f'this machine is out of memory ({_text(error, 300)}): reduce batch_size or '
            'num_workers of the dataloaders, or set model.backbone.recompute=block'
        )
    return None


def _data_worker(error: BaseException) -> str | None:
    texts = [_text(error), _text(error.__cause__)]
    killed = [match for text in texts if (match := WORKER_KILLED.search(text))]
    if 'shared memory' in ' '.join(texts) or '</torch_' in ' '.join(texts):
        return f'shared memory is full ({_text(error, 150)}): {SHARED_MEMORY}'
    if killed:
        return (
            f'a data worker was killed ({killed[-1][0]}): the machine is probably out of memory '
            '(dmesg shows it). Reduce num_workers or batch_size of the dataloaders; '
            'num_workers=0 persistent_workers=False shows errors of the dataset itself'
        )
    if 'Too many open files' in texts[0]:
        return (
            f'too many files are open ({_text(error, 150)}): raise the limit with '
            '"ulimit -n 65535", or reduce num_workers of the dataloaders'
        )
    return None


def _disk(error: BaseException) -> str | None:
    text = _text(error)
    # torch.save reports a failed write without its reason
    if any(part in text for part in ('No space left', 'quota exceeded', 'inline_container.cc')):
        return (
            f'a file could not be written ({_text(error, 150)}): the disk is probably full. '
            'Free some space in the work dir, then resume with --resume'
        )
    return None


def _package(error: BaseException) -> str | None:
    if missing := missing_library(error):
        return missing
    text = _text(error, 300)
    # mmdet's metrics raise a RuntimeError
    if (isinstance(error, ImportError) and 'install' in text) or (
        isinstance(error, RuntimeError) and 'is not installed' in text
    ):
        if 'panopticapi' in text:
            text += ' Or use mmgcvit.LoadPanopticAnnotations and mmgcvit.PanopticMetric without it'
        return f'{text} (the Python environment is {sys.prefix})'
    # mmdet, mmseg and mmpretrain compare versions when they are imported
    if isinstance(error, AssertionError) and 'is used but incompatible' in text:
        return (
            f'{text.rstrip(".")}: python tools/check_env.py shows the versions and the remedy (the '
            f'Python environment is {sys.prefix})'
        )
    # mmpretrain derives classes from what it could not import
    if isinstance(error, TypeError) and str(error) == 'NoneType takes no arguments':
        return (
            f'a library cannot be imported (the Python environment is {sys.prefix}). mmpretrain '
            "does not work with transformers 5: pip install 'transformers<5'"
        )
    return None


def _numpy(error: BaseException) -> str | None:
    """Name a package that uses what newer versions of NumPy do not have."""
    removed = isinstance(error, AttributeError) and NO_NUMPY.search(str(error))
    if not removed:
        return None
    names = (str(frame.f_globals.get('__name__')).partition('.')[0] for frame in _frames(error))
    package = next((name for name in names if name != 'numpy'), 'a package')
    remedy = REPLACED.get(package, f'install a newer version of {package}')
    version = np.__version__
    return f'{package} uses np.{removed[1]}, which NumPy {version} does not have: {remedy}'


def _file(error: BaseException) -> str | None:
    return str(error) if isinstance(error, OSError) and error.filename else None


def _encoding(error: BaseException) -> str | None:
    """Name a text file that its reader cannot parse."""
    if not isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return None
    functions = (frame for frame in _frames(error) if frame.f_code.co_name != '<module>')
    values = [value for frame in functions for value in frame.f_locals.values()]
    names = [getattr(value, 'name', value) for value in values]  # files and paths
    short = (name for name in names if isinstance(name, str | Path) and len(str(name)) < 4096)
    file = next((name for name in short if Path(name).is_file()), None)
    if file is None:
        return None
    with open(file, 'rb') as opened:
        fault = encoding_fault(str(file), opened.read(4))
    return fault or (
        f'{file} cannot be read ({describe(error)}): write it again, complete and as UTF-8, or set '
        'the path of another file'
    )


def _argument(error: BaseException) -> str | None:
    """Explain an argument in the config that its class does not have."""
    found = isinstance(error, TypeError) and UNEXPECTED.search(str(error))
    if not found:
        return None
    name, key = found.groups()
    frames = list(_frames(error))
    built = [frame for frame in frames if 'obj_cls' in frame.f_locals]
    for frame in (*built, *frames):
        settings = [value for value in _settings(frame) if key in value]
        if not settings:
            continue
        cls = frame.f_locals.get('obj_cls') or frame.f_globals.get(name)
        kinds = [frame.f_locals.get('obj_type'), *(value.get('type') for value in settings)]
        places = {
            place: node
            for place, node in _nodes(_config_of(frames))
            if key in node and node.get('type') in kinds
        }
        if not places:
            return None  # not an argument of the user's
        # without those that the libraries pass, such as the runner
        passed = {k for value in settings for k in value}.difference(*places.values())
        arguments = [argument for argument in _arguments(cls) if argument not in passed]
        return (
            f'{" and ".join(f"{place}.{key}" for place in places)}: '
            f'{getattr(cls, "__name__", name)} has no argument {key}'
            f'{did_you_mean(key, arguments)}. Allowed: {", ".join(arguments)}. '
            'To drop the arguments of a base config, set _delete_=True beside type'
        )
    return None


def _missing_argument(error: BaseException) -> str | None:
    """Explain an argument that a class needs and the config lacks."""
    found = isinstance(error, TypeError) and MISSING.search(str(error))
    frame = next(_frames(error), None)  # the frame that called the class
    if not found or frame is None:
        return None
    name, keys = found.groups()
    cls = frame.f_locals.get('obj_cls') or frame.f_globals.get(name)
    settings = [frame.f_locals.get('cfg'), *_settings(frame)]
    # an adaptation may have replaced the class by a subclass
    places = [
        place
        for place, node in _nodes(_config_of(_frames(error)))
        if node in settings or str(node.get('type')).rpartition('.')[2] == name
    ]
    names = [base.__name__ for base in getattr(cls, '__mro__', ())]  # it may inherit __init__
    if not places or name not in names:
        return None
    keys = keys.replace("'", '')
    return f'{places[-1]}: {name} needs {keys}: add {places[-1]}.{keys.partition(",")[0]}'


def _value(error: BaseException) -> str | None:
    """Explain a value that the constructor of a class in the config rejects."""
    kinds = ValueError | AssertionError | KeyError
    if not isinstance(error, kinds) or isinstance(error, UserError) or not str(error):
        return None
    frames = list(_frames(error))
    raising = frames[0]
    # the constructor itself, or a function of this package, whose messages have a remedy
    own = raising.f_globals.get('__name__', '').startswith(f'{__name__.partition(".")[0]}.models')
    built = next((frame for frame in frames if 'obj_cls' in frame.f_locals), None)
    if built is None or not (own or raising.f_back is built):
        return None
    place = _place_of(built, frames)
    return f'{place and f"{place}: "}{built.f_locals["obj_cls"].__name__}: {one_line(error)}'


def _kind(error: BaseException) -> str | None:
    """Explain a value in the config whose type the class or function does not support."""
    for is_rejected, owner, parameter, value, places in _suspects(error):
        wrong = mismatch(value, parameter.annotation, ' and '.join(places))
        mentioned = (type(value).__name__, repr(value), parameter.name)
        if wrong and (is_rejected or _mentions(error, mentioned)):
            return f'{wrong}{_reason(owner, error, places)}'
    return None


def _named_value(error: BaseException) -> str | None:
    """Explain a value in the config whose argument is named in the error."""
    for is_rejected, owner, parameter, value, places in _suspects(error):
        if is_rejected and _mentions(error, [parameter.name]):
            return f'{" and ".join(places)} is {value!r}{_reason(owner, error, places)}'
    return None


def _reason(owner: str, error: BaseException, places: list[str]) -> str:
    text = re.sub(r' in <\S+ object at 0x\w+>$', '', one_line(error))  # mmengine adds the hook
    return f' ({owner}: {text}): change it, for example with --cfg-options {places[0]}=VALUE'


def _mentions(error: BaseException, words: Iterable[str]) -> bool:
    return any(re.search(rf'(?<!\w){re.escape(word)}(?!\w)', str(error)) for word in words)


def _suspects(
    error: BaseException,
) -> Iterator[tuple[bool, str, inspect.Parameter, Any, list[str]]]:
    """Yield arguments, with values from the config, of functions that an error passed through.

    Yields:
        Whether the function itself raised the error, its name or the name of its class, the
        parameter, its value and the dotted names in the config.
    """
    if not isinstance(error, TypeError | ValueError | AssertionError):
        return
    frames = [frame for frame in _frames(error) if frame.f_locals]  # frames of Cython have none
    settings = [(path, value) for path, value in walk(_config_of(frames)) if _is_plain(value)]
    for frame in frames:
        own = [(frame is frames[0], *each) for each in _arguments_of(frame)]
        kept = [(False, *each) for each in _arguments_of_objects(frame)]
        for is_rejected, owner, parameter, value in (*own, *kept):
            places = [
                path
                for path, other in settings
                if path.rpartition('.')[2] == parameter.name
                and (type(other), other) == (type(value), value)
            ]
            if places and value != parameter.default:
                yield is_rejected, owner, parameter, value, places


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def _arguments_of(frame: FrameType) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    name, variables = frame.f_code.co_name, frame.f_locals
    own = variables.get('self')
    if name == '__init__':
        yield from _plain_values(type(own).__name__, parameters(type(own)), variables)
        return
    function = frame.f_globals.get(name) if own is None else getattr(type(own), name, None)
    if inspect.isroutine(function):
        yield from _plain_values(name, parameters(function), variables)


def _arguments_of_objects(frame: FrameType) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    """Yield the arguments that the objects of a function keep as attributes."""
    for value in list(frame.f_locals.values()):
        attributes = getattr(value, '__dict__', None)
        if isinstance(attributes, dict) and not inspect.isclass(value):
            kept = {key.removeprefix('_'): item for key, item in attributes.items()}
            yield from _plain_values(type(value).__name__, parameters(type(value)), kept)


def _plain_values(
    owner: str, arguments: Iterable[inspect.Parameter], values: Mapping[str, Any]
) -> Iterator[tuple[str, inspect.Parameter, Any]]:
    for parameter in arguments:
        if _is_plain(value := values.get(parameter.name, values)):
            yield owner, parameter, value


def _no_dict(error: BaseException) -> str | None:
    """Explain a number or text in the place of the settings of a class."""
    frames = list(_frames(error))
    built = next((frame for frame in frames if 'obj_cls' in frame.f_locals), None)
    if built is None or not str(error).startswith('cfg should be a dict'):
        return None
    value, registry = (frames[0].f_locals.get(name) for name in ('cfg', 'registry'))
    keys = [key for key, part in built.f_locals['args'].items() if part is value]
    if not keys or not isinstance(registry, Registry):
        return None
    return (
        f'{_place_of(built, frames) or built.f_locals["obj_cls"].__name__}.{keys[0]} is {value!r}, '
        f'but has to be a dict with the type and the settings of a {registry.name}'
    )


def _place_of(built: FrameType, frames: list[FrameType]) -> str:
    """Return the dotted name of the settings of a class that was being built, or ''."""
    args, kind = built.f_locals['args'], built.f_locals['obj_type']
    places = (
        place
        for place, node in _nodes(_config_of(frames))
        if node.get('type') == kind
        and all(args.get(key, value) == value for key, value in node.items())
    )
    return next(places, '')


def _type(error: BaseException) -> str | None:
    """Explain a type that no registry has."""
    frames = list(_frames(error))
    variables = [frame.f_locals for frame in frames]
    registry = next((v['registry'] for v in variables if 'registry' in v), None)
    found = isinstance(error, KeyError) and NO_TYPE.search(str(error.args[0]))
    # mmengine's constructor of optimizers
    optimizer: Mapping[str, Any] = next(
        (v['optimizer_cfg'] for v in variables if v.get('optimizer_cls', 0) is None), {}
    )
    name = found[1] if found else optimizer.get('type')
    if name is None or not isinstance(registry, Registry):
        return None
    places = [
        path
        for path, value in walk(_config_of(frames))
        if value == name and path.rpartition('.')[2] in ('type', 'runner_type')
    ]
    known = _types(registry)
    close = close_names(name.rpartition('.')[2], known, 3, cutoff=0.5)
    meant = ', '.join(full for short in close for full in known[short])
    return (
        f'{" and ".join(places) or "a type in the config"} is {name}, and there is no such '
        f'{registry.name}: {f"did you mean {meant}? " if meant else ""}'
        'A class of another library needs its scope, for example mmdet.SSDHead, and a class of '
        "your own needs custom_imports = dict(imports=['your.module'])"
    )


# of the machine and its files
FAILURES = (_memory, _data_worker, _disk, _package, _numpy, _file, _encoding)
# in the config
MISTAKES = (_argument, _missing_argument, _value, _no_dict, _type)


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an error and of its causes, the innermost first."""
    cause = error.__cause__ or error.__context__
    # older versions of mmengine raise an error of the same type again, with more text
    if type(cause) is type(error) and cause is not error:
        yield from _frames(cause)
    yield from (frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))


def _config_of(frames: Iterator[FrameType] | list[FrameType]) -> Config:
    """Return the user's config, which is the config in the outermost frame that has one."""
    configs = (
        value
        for frame in reversed(list(frames))
        for value in frame.f_locals.values()
        if isinstance(value, Config)
    )
    return next(configs, Config())


def _nodes(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted name and the value of every dict in a config."""
    yield from ((path, value) for path, value in walk(cfg) if isinstance(value, Mapping))


def _settings(frame: FrameType) -> list[Mapping[str, Any] | Config]:
    """Return the settings that a function may have passed on to a class."""
    variables = frame.f_locals
    # of mmengine's function that builds classes: it has other parts of the config in variables, too
    values = [variables['args']] if 'obj_cls' in variables else variables.values()
    return [value for value in values if isinstance(value, Mapping | Config)]


def _arguments(cls: Any) -> list[str]:
    """Return the arguments of a class, including those that it passes on to its bases."""
    return [parameter.name for parameter in parameters(cls)]


def _types(registry: Registry) -> dict[str, list[str]]:
    """Return the names of all types of a kind, and each with the scopes that have it."""
    while registry.parent is not None:
        registry = registry.parent
    found: dict[str, list[str]] = {}
    registries = [registry]
    while registries:
        current = registries.pop()
        registries += current.children.values()
        for name in current.module_dict:
            found.setdefault(name, []).append(f'{current.scope}.{name}')
    return found
