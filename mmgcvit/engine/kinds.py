"""Comparison of plain values with type hints."""

import inspect
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from ..errors import one_line


def mismatch(value: Any, kind: Any, name: str) -> str | None:
    """Return which part of a value does not match a type hint, or None if all of it matches.

    Tuples and lists are interchangeable, as in configs, and an integer is also a float. A type hint
    that is not a class, a union, a literal, or a TypedDict, list, tuple or dict of these matches
    every value.

    Args:
        value: Plain value.
        kind: Type hint.
        name: Dotted name of the value.
    """
    return next(_mismatches(value, kind, name), None)


def _mismatches(value: Any, kind: Any, name: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        yield from _of_typed_dict(value, kind, name)
    elif origin is Union or origin is types.UnionType:
        if all(mismatch(value, each, name) for each in arguments):
            # the hint with the type of the value gives the most specific text
            same = [each for each in arguments if mismatch(value, _outer(each), name) is None]
            yield from _mismatches(value, same[0], name) if same else [_text(value, kind, name)]
    elif origin is Literal:
        if not any(type(value) is type(each) and value == each for each in arguments):
            yield _text(value, kind, name)
    elif not isinstance(value, _accepted(kind)):
        yield _text(value, kind, name)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for key, item in value.items():
            yield from _mismatches(key, arguments[0], f'a key of {name}')
            yield from _mismatches(item, arguments[1], f'{name}.{key}')
    elif isinstance(value, list | tuple) and arguments:
        yield from _of_items(value, arguments, origin, name)


def _of_typed_dict(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield _text(value, dict, name)
        return
    for key, each in get_type_hints(kind).items():
        if key in value:
            yield from _mismatches(value[key], each, f'{name}.{key}'.lstrip('.'))
        elif key in kind.__required_keys__:
            yield f'{f"{name}.{key}".lstrip(".")} is missing'


def _of_items(
    value: Sequence[Any], arguments: tuple[Any, ...], origin: Any, name: str
) -> Iterator[str]:
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            yield f'{name} has {len(value)} values, but has to have {len(arguments)}'
            return
        kinds = arguments
    else:
        kinds = (arguments[0],) * len(value)
    for index, (item, each) in enumerate(zip(value, kinds, strict=True)):
        yield from _mismatches(item, each, f'{name}.{index}')


def _outer(kind: Any) -> Any:
    return dict if is_typeddict(kind) else get_origin(kind) or kind


def _accepted(kind: Any) -> type | tuple[type, ...]:
    kind = get_origin(kind) or kind
    if kind is None:
        return types.NoneType
    if kind is float:
        return float, int
    if kind in (list, tuple):
        return list, tuple
    # Any is a class since Python 3.11, and few protocols can be checked
    known = isinstance(kind, type) and kind is not Any and not getattr(kind, '_is_protocol', False)
    return kind if known else object


def _text(value: Any, kind: Any, name: str) -> str:
    found = one_line(reprlib.repr(value), 60) if _is_short(value) else f'a {type(value).__name__}'
    return f'{name} is {found}, but has to be {name_of(kind)}'


def _is_short(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def name_of(kind: Any) -> str:
    """Return a type hint in words, for example ``'int or None'``."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return ' or '.join(dict.fromkeys(name_of(each) for each in arguments))
    if get_origin(kind) is Literal:
        return ' or '.join(repr(each) for each in arguments)
    kind = get_origin(kind) or kind
    return 'None' if kind in (None, types.NoneType) else getattr(kind, '__name__', str(kind))


def parameters(cls: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function or a class, including those passed on to its bases.

    Without a type hint, a parameter has the type of its default.
    """
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(cls) if inspect.isclass(cls) else [cls]:
        function = vars(base).get('__init__') if inspect.isclass(base) else base
        if not inspect.isroutine(function):
            continue
        try:
            own = inspect.signature(function).parameters.values()
        except ValueError:  # functions in C may have no signature
            continue
        hints = _hints(function)
        for each in own:
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name != 'self':
                found.setdefault(each.name, each.replace(annotation=_hint_of(each, hints)))
        if all(each.kind != each.VAR_KEYWORD for each in own):
            break
    return list(found.values())


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except Exception:  # names that only type checkers import
        return {}


def _hint_of(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    if parameter.name in hints or parameter.default in (None, parameter.empty):
        return hints.get(parameter.name, Any)
    return type(parameter.default)
