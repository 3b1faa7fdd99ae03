"""Progress of long work."""

import time


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
