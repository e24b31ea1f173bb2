"""Results of images on disk, written one by one and read again by whoever goes on or compares."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sam_jax.errors import MissingFile, UserError
from sam_jax.files import write_atomically

MaskRecord = dict[str, Any]
"""Of one mask: `mask` (its number on the image), `area`, `iou` after each click, `best` of the first masks."""

ImageRecord = dict[str, Any]
"""Of one image: `dataset`, `picture`, `masks` (records) and `problems` (masks that can't be used, in words)."""

IOU_SCALE = 1_000_000
"""IoUs are kept with six decimals, so that sums of them are sums of whole numbers: exact in any order."""


def image_key(line: ImageRecord) -> tuple[str, str]:
    return line["dataset"], line["picture"]


class RecordLog:
    """Lines of one method in a folder: NAME.jsonl when all is done, NAME.part-N.jsonl of each process until then.

    The first line of a file is the protocol. Files of another protocol are put aside as *.old; a last line that was
    torn off is dropped.

    Args:
        protocol: what the lines depend on.
        process: number of this one; process 0 alone touches files but its own part.
    """

    def __init__(self, folder: Path, name: str, protocol: dict[str, Any], process: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self._protocol = protocol
        self._part = folder / f"{name}.part-{process}.jsonl"
        self._parts = f"{name}.part-*.jsonl"
        self.lines: dict[tuple[str, str], ImageRecord] = {}
        for path in [self.path, *sorted(folder.glob(self._parts))]:
            if not path.exists():
                continue
            header, lines = _read(path)
            if header == protocol:
                self.lines |= {image_key(line): line for line in lines}
            elif process == 0:
                path.replace(path.with_name(f"{path.name}.old"))
        self._written = False

    def write(self, line: ImageRecord) -> None:
        """Adds an image to this process's part; it is on disk when this returns."""
        if not self._written:  # whatever the last run left there, in whole lines
            header, lines = _read(self._part) if self._part.exists() else (None, [])
            kept = lines if header == self._protocol else []
            write_atomically(self._part, _text([self._protocol, *kept]))
            self._written = True
        self.lines[image_key(line)] = line
        with self._part.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, lines: Iterable[ImageRecord]) -> None:
        """Writes NAME.jsonl from the lines of all processes; parts go. For process 0, after all have ended."""
        write_atomically(self.path, _text([self._protocol, *lines]))
        for part in self.path.parent.glob(self._parts):
            part.unlink()


def read_records(path: Path) -> tuple[dict[str, Any], list[ImageRecord]]:
    """(protocol, lines) of a file of records.

    Raises:
        FileNotFoundError, ValueError: no such file; not one of records.
    """
    if not path.is_file():
        raise MissingFile(f"expected records at {path}, as eval.py configs/eval_single_point.py leaves them")
    header, lines = _read(path)
    if not isinstance(header, dict) or any(not {"dataset", "picture", "masks"} <= line.keys() for line in lines):
        raise UserError(f"expected records of an evaluation by clicks in {path}: a protocol, then a line per image")
    return header, lines


def sum_counts(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Sums by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _text(rows: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _read(path: Path) -> tuple[Any, list[ImageRecord]]:
    rows = list(_whole(path.read_text().splitlines()))
    return (rows[0], rows[1:]) if rows else (None, [])


def _whole(lines: Iterable[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
