"""The errors that answer what a user gave: a file, an option, data, a prompt, a checkpoint.

Whoever runs a command, a page or an evaluation catches `UserError` and the `OSError` of a path or disk, and nothing
wider: any other exception is a bug, and its traceback is wanted. Each class is also the built-in error of its kind, so
that callers of the API may catch `ValueError`, `TypeError` or `FileNotFoundError` as usual.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something that a user gave cannot be used; the message says what was expected, what came and what to do.

    The message can be printed anywhere: what no encoding has, as in names of files that are no UTF-8, is escaped.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_printable(arg) if isinstance(arg, str) else arg for arg in args))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class WrongType(UserError, TypeError):
    """A value has another type, or an array another dtype, than the one that was expected."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that a user named, or that belongs beside it, is not there."""


class AlreadyExists(UserError, FileExistsError):
    """A file or folder is there already and would be overwritten."""


class InUse(UserError):
    """Another process is writing to the same folder."""


class MissingPackage(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class DownloadFailed(UserError, ConnectionError):
    """A file could not be downloaded, or not to its end."""


class NonFiniteGradients(UserError, FloatingPointError):
    """Training stopped because too many updates in a row had gradients that are not finite."""


class BadRecord(UserError):
    """An image that cannot be used with its masks.

    Args:
        reason: in a few words, the same for all records of a kind; they are counted by it.
        where: the file or record.
        detail: what was found there.
    """

    def __init__(self, reason: str, where: object, detail: object = "") -> None:
        super().__init__(reason, str(where), str(detail))  # as args, so that it can be pickled
        self.reason, self.where, self.detail = self.args

    def __str__(self) -> str:
        return f"{self.reason}: {self.where}" + (f" ({self.detail})" if self.detail else "")


@contextlib.contextmanager
def decoding(where: object, what: str = "image") -> Iterator[None]:
    """Turns whatever a decoder raises on a file into a BadRecord, lack of memory too.

    This is the one place that takes any exception, since the decoders of images raise nearly any (struct.error,
    SyntaxError, OverflowError, ...). Only a decoder's call belongs inside.

    Args:
        where: the file or record.
        what: what is decoded, for the reason.
    """
    try:
        yield
    except MemoryError as error:
        raise BadRecord(f"{what} takes more memory than there is", where, error) from error
    except Exception as error:
        raise BadRecord(f"{what} cannot be decoded", where, error or type(error).__name__) from error


EXPECTED_ERRORS = (UserError, OSError)
"""What commands and pages answer in a line: a user's mistake, or a path or disk. Anything else is a bug."""
