"""The one exception of this package for what a user can correct."""


class UserError(ValueError):
    """An argument, a file or an environment that the user can correct.

    The message states what was found, what is allowed and the remedy. Command-line tools print it
    in one line and exit with code 1.
    """
