"""Progress bars of long work, on a terminal and in a file."""

from __future__ import annotations

import sys
import time
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
