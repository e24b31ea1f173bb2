"""What long work shows: progress bars, on a terminal and in a file, and warnings."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

SECONDS = 60.0  # between two lines in a file


class ProgressBar(tqdm):
    """tqdm's bar, on standard error. In a file, or another place that is no terminal, it is a line a minute.

    The arguments are tqdm's. There is a line at the beginning and one at the end, too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        notebook = type(sys.stderr).__module__.startswith("ipykernel")  # draws bars, and is no terminal
        self._drawn = notebook or sys.stderr.isatty()
        self._next_line = 0.0
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the bar, or writes a line if it is time for one; returns whether there is anything to clear."""
        if self._drawn:
            return super().display(msg, pos)
        closing = bool(self.disable)  # close, which calls this once more, ends the line
        if msg is None and (closing or time.monotonic() >= self._next_line):
            self.fp.write(str(self) if closing else f"{self}\n")
            self.fp.flush()
            self._next_line = time.monotonic() + SECONDS
        return False

    def clear(self, nolock: bool = False) -> None:
        """Removes the bar from the terminal; lines in a file stay."""
        if self._drawn:
            super().clear(nolock)


@contextlib.contextmanager
def show_warnings() -> Iterator[None]:
    """Prints what the package logs while the block runs, in the form of a command's messages and each message once."""
    logger, handler = logging.getLogger("sam_jax"), _Messages(logging.WARNING)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # libraries add handlers of their own to the root, which would print it again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Messages(logging.Handler):
    """Prints messages to standard error, above a progress bar."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            ProgressBar.write(f"sam-jax: {message}", file=sys.stderr)
