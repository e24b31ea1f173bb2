"""What an evaluation hands back: a table for people and the same numbers for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sam_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class EvalReport:
    title: str  # what the table shows, one line
    table: str  # Markdown
    results: dict[str, Any]  # the numbers, as JSON takes them
    failed: bool = False  # a part of several went wrong, and not for want of its data

    def write(self, folder: Path) -> Path:
        """Writes report.json and report.md, and gives the path of the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "report.json", json.dumps(self.results, indent=1))
        path = folder / "report.md"
        write_atomically(path, self.table)
        return path


class Evaluation(Protocol):
    """A config that `eval.py` runs: its fields say what, `evaluate` does it."""

    @property
    def out(self) -> Path:
        """Where results go."""
        ...

    def evaluate(self) -> EvalReport:
        """Measures. What is done already is not done again.

        Raises:
            ValueError, OSError: something is wrong with config or data, for the user to read.
        """
        ...


LEFT_OUT = "Left out, and in no figure"


def list_section(heading: str, rows: Sequence[str]) -> str:
    """Markdown below a table: a heading and a list; nothing where the list is empty."""
    return f"\n{heading}:\n\n" + "\n".join(f"- {row}" for row in rows) + "\n" if rows else ""
