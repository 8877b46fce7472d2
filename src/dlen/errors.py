"""Exceptions: the one that a user is meant to read, and what data must have for a model."""


class UserError(Exception):
    """Wrong input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.
    """


class UnfitError(UserError):
    """A model that the data do not allow."""


class UnmetNeedError(ValueError):
    """Raised by a model whose schema lacks what it needs, such as a funnel or a position."""
