"""Progress of long work."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')
SECONDS = 5  # between two lines


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


def with_progress(
    items: Sequence[T], what: str, say: Callable[[str], None] | None = None
) -> Iterator[T]:
    """Yield items, and report the progress and the remaining time every few seconds.

    Args:
        items: The items.
        what: Description of the work, for example 'reading label maps'.
        say: Called with each line. Lines are printed by default.
    """
    began = shown = time.monotonic()
    for done, item in enumerate(items):
        if done and (now := time.monotonic()) - shown > SECONDS:
            left = duration(time_left(began, done, len(items)))
            line = f'{what}: {done} of {len(items)}, {left} left'
            say(line) if say else print(line, flush=True)
            shown = now
        yield item
