"""The one error family: what is wrong, where, what is allowed, what to do."""

from __future__ import annotations


class HBOError(Exception):
    """Base of every error that this package raises on purpose.

    The text is one line that a user can act on. ``where`` is kept apart so that the command line
    can print ``error: FILE:LINE: text`` and so that a caller can read the place.

    Args:
        message: What is wrong, what is allowed, what to do; one line.
        where: The place of the fault, such as ``data/german.jsonl:12``; ``None``: there is none.

    Example:
        >>> str(DataError("no response", where="train.jsonl:3"))
        'train.jsonl:3: no response'
    """

    exit_status = 1

    def __init__(self, message: str, *, where: str | None = None) -> None:
        self.message = " ".join(message.split())
        self.where = where
        super().__init__(f"{where}: {self.message}" if where else self.message)


class ConfigError(HBOError):
    """A setting is unknown, out of range or contradicts another; exit status 2."""

    exit_status = 2


class DataError(HBOError):
    """A file, a record or a subset cannot be used as it is; exit status 2."""

    exit_status = 2


class StateError(HBOError):
    """A saved state does not belong to this run, or an order of calls would break exactness."""

    exit_status = 2


class EnvironmentProblem(HBOError):
    """The machine is in the way: disk full, hub out of reach, out of memory; exit status 1."""

    exit_status = 1
