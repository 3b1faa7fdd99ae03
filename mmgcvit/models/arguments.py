"""Validation of constructor arguments. Errors name the argument, its value and the remedy."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard, TypeVar

NUM_STAGES = 4
T = TypeVar('T')


def is_int(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer; booleans do not count."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a finite real number; booleans do not count."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def integer(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return ``value`` if it is an integer from ``minimum`` to ``maximum`` (inclusive).

    Raises:
        ValueError: Otherwise.
    """
    if is_int(value) and value >= minimum and (maximum is None or value <= maximum):
        return int(value)
    allowed = f'>= {minimum}' if maximum is None else f'from {minimum} to {maximum}'
    raise ValueError(f'{name}={value!r} is not allowed: give an integer {allowed}')


def one_per_stage(name: str, value: object, minimum: int) -> tuple[int, ...]:
    """Return ``value`` as a tuple if it has one integer >= ``minimum`` per stage.

    Raises:
        ValueError: Otherwise.
    """
    if (
        isinstance(value, Sequence)
        and len(value) == NUM_STAGES
        and all(is_int(v) and v >= minimum for v in value)
    ):
        return tuple(int(v) for v in value)
    raise ValueError(
        f'{name}={value!r} is not allowed: give {NUM_STAGES} integers >= {minimum}, one per stage'
    )


def one_of(name: str, value: T, allowed: Sequence[T]) -> T:
    """Return ``value`` if it is one of the allowed values.

    Raises:
        ValueError: Otherwise.
    """
    # `in` would accept 1 for True
    if any(type(value) is type(one) and value == one for one in allowed):
        return value
    raise ValueError(f'{name}={value!r} is not allowed: give {" or ".join(map(repr, allowed))}')


def sequence_of(name: str, value: object, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return ``value`` as a tuple if it is a non-empty sequence of allowed values.

    Raises:
        ValueError: Otherwise.
    """
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)  # which is itself a sequence of strings
        and len(value) > 0
        and all(isinstance(v, str) and v in allowed for v in value)
    ):
        return tuple(value)
    raise ValueError(
        f'{name}={value!r} is not allowed: give a sequence of {" and ".join(map(repr, allowed))}'
    )


def rate(name: str, value: object) -> float:
    """Return ``value`` as a float if it is in [0, 1).

    Raises:
        ValueError: Otherwise.
    """
    if is_real(value) and 0 <= value < 1:
        return float(value)
    raise ValueError(f'{name}={value!r} is not allowed: give a number >= 0 and < 1')
