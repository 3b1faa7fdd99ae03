"""The exception class for errors that users can fix, and parts of messages."""

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """An error in an argument, a file or the environment that the user can fix.

    The message states what was found, what is allowed and the remedy. Command-line tools print it
    on one line and exit with code 1.
    """


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an exception in one line, at most ``limit`` characters."""
    return ' '.join(str(error).split())[:limit]


def describe(error: BaseException, limit: int = 300) -> str:
    """Return the type of an exception, and its text, or the line of code if it has no text."""
    frames = traceback.extract_tb(error.__traceback__)
    code = frames[-1].line if frames else None
    return f'{type(error).__name__}: {one_line(error, limit) or code or ""}'


def place(error: BaseException) -> str:
    """Return the file and the line that raised an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return 'unknown place'
    file = Path(frames[-1].filename)
    return f'{"/".join(file.parts[-3:])}:{frames[-1].lineno}'


def close_names(name: str, known: Iterable[str], number: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the known names that are closest to a wrong one, without regard to case.

    Args:
        name: The wrong name.
        known: The allowed names.
        number: How many names to return at most.
        cutoff: Least similarity, from 0 to 1, as in :func:`difflib.get_close_matches`.
    """
    spellings: dict[str, list[str]] = {}
    for each in known:
        spellings.setdefault(each.lower(), []).append(each)
    close = difflib.get_close_matches(name.lower(), spellings, number, cutoff)
    return [each for lower in close for each in spellings[lower]][:number]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is closest to a wrong one, or '' if none is close."""
    close = close_names(name, known)
    return f' (did you mean {close[0]}?)' if close else ''


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and a noun: '1 image', '2 images'.

    Args:
        number: The number.
        noun: The noun in the singular.
        plural: Its plural, by default with an s.
    """
    return f'{number} {noun if number == 1 else plural or f"{noun}s"}'


def printable(text: str) -> str:
    """Escape control characters, except line breaks and tabs.

    Otherwise, text from a file could change what a terminal shows.
    """
    return ''.join(
        char if char in '\n\t' or char.isprintable() else repr(char)[1:-1] for char in text
    )
