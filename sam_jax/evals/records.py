"""Records of click evaluations on disk, written image by image, to resume from and to compare."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sam_jax.errors import MissingFile, UserError
from sam_jax.files import append_line, make_folder, read_text, remove, write_atomically

MaskRecord = dict[str, Any]
"""One mask: `mask` (its index in the image), `area`, `iou` after each click, `best` IoU of the first masks."""

ImageRecord = dict[str, Any]
"""One image: `dataset`, `picture` (its name), `masks` (mask records), `problems` (messages about unusable masks)."""

IOU_SCALE = 1_000_000
"""IoUs are kept with six decimals and summed as integers, so that sums are exact in any order."""


def image_key(line: ImageRecord) -> tuple[str, str]:
    """Returns the dataset and the image name, which identify a record."""
    return line["dataset"], line["picture"]


class RecordLog:
    """The image records of one method in a folder.

    While the evaluation runs, each process N appends lines to NAME.part-N.jsonl; at the end they become NAME.jsonl. The
    first line of a file is the protocol. Files of another protocol are renamed to *.old; an incomplete last line is
    dropped.

    Args:
        protocol: everything the records depend on.
        process: index of this process; only process 0 changes files other than its own.
    """

    def __init__(self, folder: Path, name: str, protocol: dict[str, Any], process: int = 0) -> None:
        make_folder(folder)
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
        """Appends an image to the file of this process; it is on disk when this returns."""
        if not self._written:  # keep the complete lines of an interrupted run
            header, lines = _read(self._part) if self._part.exists() else (None, [])
            kept = lines if header == self._protocol else []
            write_atomically(self._part, _text([self._protocol, *kept]))
            self._written = True
        self.lines[image_key(line)] = line
        append_line(self._part, json.dumps(line))

    def finish(self, lines: Iterable[ImageRecord]) -> None:
        """Writes NAME.jsonl and deletes the parts. Process 0 calls this with all lines once all processes are done."""
        write_atomically(self.path, _text([self._protocol, *lines]))
        for part in self.path.parent.glob(self._parts):
            remove(part)


def read_records(path: Path) -> tuple[dict[str, Any], list[ImageRecord]]:
    """Reads a file of records.

    Returns:
        The protocol and the image records.

    Raises:
        MissingFile: the file does not exist.
        UserError: it does not hold records.
    """
    if not path.is_file():
        raise MissingFile(f"expected records at {path}, as `sam-jax eval single_point` leaves them")
    header, lines = _read(path)
    if not isinstance(header, dict) or any(not {"dataset", "picture", "masks"} <= line.keys() for line in lines):
        raise UserError(f"expected records of a click evaluation in {path}: a protocol, then a line per image")
    return header, lines


def sum_counts(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Sums counters by name."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _text(rows: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _read(path: Path) -> tuple[Any, list[ImageRecord]]:
    rows = list(_complete_lines(read_text(path).splitlines()))
    return (rows[0], rows[1:]) if rows else (None, [])


def _complete_lines(lines: Iterable[str]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the process was ended within a line
            continue
