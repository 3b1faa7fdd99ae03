"""How a command-line tool ends when something is wrong or it is interrupted."""

import sys
from collections.abc import Callable

from ..weights import WeightsError


class ToolError(Exception):
    """Something that the user of a tool can put right; the message says how."""


def run_tool(main: Callable[[], None]) -> None:
    """Run a tool's main function; what the user can put right ends in one line and exit code 1."""
    try:
        main()
    except (ToolError, WeightsError, OSError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(130)
