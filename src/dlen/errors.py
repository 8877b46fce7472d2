"""The one exception a user is meant to read: a single line that says what is wrong and what to do."""


class UserError(Exception):
    """Wrong input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.
    """
