"""Reports of evaluations: a table to read, and the same numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sam_jax.files import make_folder, write_atomically


@dataclasses.dataclass(frozen=True)
class EvalReport:
    """The results of an evaluation."""

    title: str  # one line that says what the table shows
    table: str  # Markdown
    results: dict[str, Any]  # the numbers, serialisable as JSON
    failed: bool = False  # a task of a suite failed, other than by missing data

    def write(self, folder: Path) -> Path:
        """Writes report.json and report.md to a folder and returns the path of report.md."""
        make_folder(folder)
        write_atomically(folder / "report.json", json.dumps(self.results, indent=1))
        path = folder / "report.md"
        write_atomically(path, self.table)
        return path


class Evaluation(Protocol):
    """A config that `sam-jax eval` runs: its fields are the options, and `evaluate` runs the evaluation."""

    @property
    def out(self) -> Path:
        """The folder for results."""
        ...

    def evaluate(self) -> EvalReport:
        """Runs the evaluation. Results that exist already are reused.

        Raises:
            UserError, OSError: the config or the data cannot be used; the message is for the user.
        """
        ...


LEFT_OUT = "Left out, and in no figure"


def list_section(heading: str, rows: Sequence[str]) -> str:
    """Formats a heading and a list in Markdown; returns an empty string for an empty list."""
    return f"\n{heading}:\n\n" + "\n".join(f"- {row}" for row in rows) + "\n" if rows else ""
