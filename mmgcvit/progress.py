"""Progress of long work."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')


def time_left(began: float, done: int, total: int) -> float:
    """Return the estimated remaining time in seconds.

    Args:
        began: ``time.monotonic()`` at the beginning.
        done: Number of completed parts, at least 1.
        total: Number of parts.
    """
    return (time.monotonic() - began) / done * (total - done)


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it, for example ``'1.5 min'``."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 5400:
        return f'{seconds / 60:.1f} min'
    return f'{seconds / 3600:.1f} h' if seconds < 172800 else f'{seconds / 86400:.1f} days'


def with_progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield items, and print the progress and the remaining time every few seconds.

    Args:
        items: The items.
        what: Description of the work, for example 'reading label maps'.
    """
    began = shown = time.monotonic()
    for done, item in enumerate(items):
        if (now := time.monotonic()) - shown > 5:
            left = duration(time_left(began, done, len(items)))
            print(f'{what}: {done} of {len(items)}, {left} left', flush=True)
            shown = now
        yield item
