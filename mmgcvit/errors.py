"""The exception class for errors that users can fix."""


class UserError(ValueError):
    """An error in an argument, a file or the environment that the user can fix.

    The message states what was found, what is allowed and the remedy. Command-line tools print it
    on one line and exit with code 1.
    """
