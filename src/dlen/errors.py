"""Exceptions: the one that a user is meant to read, and what data must have for a model."""


class UserError(Exception):
    """Wrong input or settings. The message is one line that names the file, row, field or config key.

    The commands print it without a traceback and exit with code 2.

    Args:
        message: line breaks in it, such as those of a cell that is quoted, are shown as such.
    """

    def __init__(self, message: str) -> None:
        super().__init__(str(message).replace("\r", "\\r").replace("\n", "\\n"))


class UnfitError(UserError):
    """A model that the data do not allow."""


class UnmetNeedError(ValueError):
    """Raised by a model whose schema lacks what it needs, such as a funnel or a position."""
