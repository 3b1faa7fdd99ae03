"""``--cfg-options``: config settings on the command line."""

import argparse
import inspect
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ..errors import UserError, one_line
from ..registry import class_of

BRACKETS = {'(': ')', '[': ']', '{': '}'}
# Keys of a config that mmengine's Runners, mmdet's and mmseg's test-time augmentation and these
# tools read in addition to the arguments of Runner.
READ_TOO = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'init_weights_for_test_or_val',
    'model_wrapper_cfg',
    'runner_type',
    'skip_checks',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
)
# Replacements for settings of mmdet 2 and mmseg 0, and of the other kind of training loop.
RENAMED = {
    'samples_per_gpu': ('train_dataloader.batch_size',),
    'workers_per_gpu': ('train_dataloader.num_workers',),
    'total_epochs': ('train_cfg.max_epochs', 'train_cfg.max_iters'),
    'max_epochs': ('train_cfg.max_epochs', 'train_cfg.max_iters'),
    'max_iters': ('train_cfg.max_iters', 'train_cfg.max_epochs'),
    'lr_config': ('param_scheduler',),
    'evaluation': ('train_cfg.val_interval',),
    'checkpoint_config': ('default_hooks.checkpoint',),
    'log_config': ('default_hooks.logger',),
    'optimizer_config': ('optim_wrapper',),
    'resume_from': ('resume',),
    'seed': ('randomness.seed',),
    'dist_params': ('env_cfg.dist_cfg',),
    'fp16': ('optim_wrapper.type',),
    'launcher': ('--launcher',),
    'deterministic': ('randomness.deterministic',),
}
SHOWN = 6


class ReadOptions(argparse.Action):
    """Collect arguments ``KEY=VALUE`` in a dict, with values from :func:`parse_value`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # list[str]; argparse allows others
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for argument in values:
            key, equals, text = argument.partition('=')
            if not (equals and key.strip()):
                raise UserError(
                    f'{option_string} {argument!r} is not KEY=VALUE: write it without spaces '
                    'around "=", and quote values that contain spaces, for example '
                    '"data_root=data/my shapes/"'
                )
            try:
                options[key.strip()] = parse_value(text)
            except UserError as error:
                raise UserError(f'{option_string} {key.strip()}: {error}') from error
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """Parse the value of an option.

    ``3``, ``1e-4``, ``true`` and ``None`` become a number, a boolean and None. ``a,b`` and
    ``[a,b]`` are lists, ``(a,b)`` is a tuple and ``{a: b}`` a dict. They can be nested. Quoted text
    is always a string: ``'1'``, ``'a,b'``. A backslash has no special meaning. All other text is an
    unchanged string, including spaces and quotes.

    Raises:
        UserError: If brackets do not match.
    """
    return _parse(text, text)


def _parse(text: str, as_given: str) -> Any:
    """Parse one value. Text of no other type becomes the string ``as_given``."""
    text = text.strip()
    parts = _split(text, ',')
    if len(parts) > 1:
        return _parse_all(parts)
    if _is_enclosed(text):
        inner = _split(text[1:-1], ',')
        if text[0] == '{':
            pairs = [_split(pair, ':', 1) for pair in _without_last_empty(inner)]
            if any(len(pair) == 1 for pair in pairs):
                return as_given
            return {_parse(key, key.strip()): _parse(value, value.strip()) for key, value in pairs}
        values = _parse_all(inner)
        return tuple(values) if text[0] == '(' else values
    if len(text) > 1 and text[0] in '"\'' and _end_of_quote(text, 0) == len(text) - 1:
        return text[1:-1]
    return _parse_word(text, as_given)


def _parse_all(parts: Sequence[str]) -> list[Any]:
    return [_parse(part, part.strip()) for part in _without_last_empty(parts)]


def _without_last_empty(parts: Sequence[str]) -> Sequence[str]:
    """Drop the empty part after a trailing comma, as in Python."""
    return parts if parts[-1].strip() else parts[:-1]


def _parse_word(text: str, as_given: str) -> Any:
    for number in (int, float, lambda digits: int(digits, base=0)):  # 3, 1e-4, 0xff
        with suppress(ValueError):
            return number(text)
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    return None if text == 'None' else as_given


def _split(text: str, separator: str, maxsplit: int = -1) -> list[str]:
    """Split at separators outside of quotes and brackets, at most ``maxsplit`` times."""
    parts: list[str] = []
    start = 0
    for i, char, depth in _outside_quotes(text):
        if char == separator and depth == 0 and len(parts) != maxsplit:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _is_enclosed(text: str) -> bool:
    """Return whether the last character closes a bracket that the first one opens."""
    closed = (i for i, _, depth in _outside_quotes(text) if depth == 0)
    return text[:1] in BRACKETS and next(closed) == len(text) - 1


def _outside_quotes(text: str) -> list[tuple[int, str, int]]:
    """Return index, character and number of open brackets after it, outside of quotes.

    Raises:
        UserError: If brackets of a list, tuple or dict do not match.
    """
    found, closing, i, matching = [], [], 0, True
    while i < len(text):
        char = text[i]
        if char in '"\'' and _opens(text, i):
            i = _end_of_quote(text, i)
        elif char in BRACKETS:
            closing.append(BRACKETS[char])
        elif char in BRACKETS.values():
            matching &= bool(closing) and closing.pop() == char
        found.append((i, text[i], len(closing)))
        i += 1
    if matching and not closing:
        return found
    if ',' in text or text[0] in BRACKETS or text[-1] in BRACKETS.values():
        raise UserError(
            f'the brackets of {text} do not match: close every bracket, or quote a string that '
            'contains brackets, for example "KEY=\'a[b\'"'
        )
    return []  # a single bracket within a name is an ordinary character


def _opens(text: str, i: int) -> bool:
    """Return whether a quote begins a string. A quote within a word (O'Brien) does not."""
    before = text[:i].rstrip()
    return not before or before[-1] in ',([{:'


def _end_of_quote(text: str, start: int) -> int:
    """Return the index of the closing quote, or ``start`` if there is none."""
    end = text.find(text[start], start + 1)
    while end != -1:
        after = text[end + 1 :].lstrip()
        if not after or after[0] in ',)]}:':
            return end
        end = text.find(text[start], end + 1)
    return start


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Override settings of a config in place, by dotted names.

    The next index of a list adds an element to it.

    Raises:
        UserError: If an option does not match the config or has no effect.
    """
    _refuse_unread(cfg, options)
    _refuse_replaced(cfg, options)
    try:
        for name in options:
            _make_room(cfg, name.split('.'))
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        reason = one_line(str(error).strip('\'"'))
        raise UserError(
            f'--cfg-options cannot be merged ({reason}): compare with the keys of '
            f'{cfg.filename} and its bases'
        ) from error


def _make_room(cfg: Config, keys: Sequence[str]) -> None:
    """Add a list element for an option if its index is the next one of the list.

    mmengine can only change existing elements. For a missing list, it would create a dict.
    """
    node = cfg
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(node, list):
            if key == str(len(node)):
                node.append(ConfigDict())
            if not (key.isdigit() and int(key) < len(node)):
                return  # mmengine reports the error
            node = node[int(key)]
        elif isinstance(node, MutableMapping | Config):
            if following is not None and following.isdigit() and node.get(key) is None:
                if following != '0':
                    raise KeyError(f'{".".join(keys)}: there is no {key} yet, start with index 0')
                node[key] = []
            node = node.get(key)


def _refuse_unread(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raise if an option changes a variable of the config file that is not read afterwards.

    Config files use variables such as ``data_root`` or ``optimizer`` to compute other settings. An
    option that changes the variable does not change these settings.
    """
    if 'model' not in cfg:
        return  # not a config of a Runner: the code that reads it is unknown
    read = _read_keys(cfg, options)
    texts = []
    for name in options:
        if name.partition('.')[0] in read:
            continue
        instead = _find_read(name, cfg, read)
        remedy = ', '.join(instead[:SHOWN]) or f'a key under {", ".join(sorted(read & set(cfg)))}'
        more = f' or {len(instead) - SHOWN} others with that name' if len(instead) > SHOWN else ''
        texts.append(f'{name} changes nothing, because nothing reads it: set {remedy}{more}')
    if texts:
        raise UserError(
            f'--cfg-options {"; ".join(texts)}. Set variables that only {cfg.filename} itself or '
            'your code uses in that file'
        )


def _refuse_replaced(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raise if an option replaces the settings of a class by a value of another kind."""
    settings = dict(walk(cfg))
    for name, value in options.items():
        replaced = settings.get(name)
        if not isinstance(replaced, Mapping) or 'type' not in replaced:
            continue
        if value is not None and not isinstance(value, Mapping):
            keys = ', '.join(f'{name}.{key}' for key in list(replaced)[:SHOWN])
            raise UserError(
                f'--cfg-options {name}={value} replaces the settings of {replaced["type"]}: set '
                f'one of them, for example {keys}'
            )


def _read_keys(cfg: Config, options: Mapping[str, Any]) -> set[str]:
    """Return the top-level keys that a Runner, its model or these tools read."""
    runner_type = options.get('runner_type', cfg.get('runner_type'))
    runners = [Runner, FlexibleRunner, class_of(runner_type, RUNNERS)]
    read = {name for cls in runners if cls for name in inspect.signature(cls).parameters}
    if 'data_preprocessor' in (cfg.get('model') or {}):
        read.discard('data_preprocessor')  # Runner uses the model's
    # the tools set the launcher from their own argument
    return (read - {'cfg', 'launcher'}) | set(READ_TOO)


def _find_read(name: str, cfg: Config, read: set[str]) -> list[str]:
    """Return the dotted names that an option most likely means, or an empty list."""
    top, _, below = name.partition('.')
    last = name.rpartition('.')[2]
    variable = cfg.get(top)
    settings = dict(walk({key: cfg[key] for key in cfg if key in read}))
    # settings that the file computes from a variable such as `optimizer` or `train_pipeline`
    used = [
        f'{path}.{below}' if below else path
        for path, value in settings.items()
        if isinstance(variable, dict | list | tuple) and variable and value == variable
    ]
    same_end = [path for path in settings if path.endswith(f'.{name}')]
    # settings that the file composes from a path, such as annotation files of evaluators
    below_path = [
        path
        for path, value in settings.items()
        if isinstance(variable, str) and '/' in variable and str(value).startswith(variable)
    ]
    same_last = [path for path in settings if path.endswith(f'.{last}')]
    renamed = RENAMED.get(last) or RENAMED.get(top) or ()
    known = [path for path in renamed if path in settings]
    found = list(dict.fromkeys(used + same_end + below_path))
    return found or known or same_last or list(renamed[:1])


def walk(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting in a config."""
    if isinstance(node, Mapping | Config):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        return
    for key, value in items:
        name = f'{path}.{key}' if path else str(key)
        yield name, value
        yield from walk(value, name)


def accumulative_counts(cfg: Config) -> int:
    """Return the number of iterations per update, for several optimizers the largest one."""
    settings = walk({'optim_wrapper': cfg.get('optim_wrapper')})
    counts = [value for name, value in settings if name.endswith('.accumulative_counts')]
    return max(counts, default=1)
