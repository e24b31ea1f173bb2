"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name; the file or folder that was written there becomes `path` at the end, if all went well.

    The name is hidden, ends in .tmp and is another one each time: of two processes or threads that write one file, the
    last one's stays, whole. What a killed process has left stays, too, and nothing reads it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


def write_atomically(path: Path, content: str | bytes) -> None:
    """A file's whole content; text as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """A file, or a folder with all in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
