"""Opens all files that the package itself reads and writes; what is written is whole or not there.

What is asked about a path (is_file, glob, ...) is asked of the path. Libraries that take a path (Pillow, OpenCV,
safetensors, Orbax, TFDS, ArrayRecord, SQLite) open it themselves. Files at URLs are reached by
`sam_jax.engine.automatic.folder`, a second door beside this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from importlib import resources
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from sam_jax.errors import BadRecord, InUse, UserError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LEAST_FREE = 2**16  # bytes; with less than this, errors of libraries while they write are taken for a full disk

# Reading


def read_bytes(path: Path, start: int = 0, length: int = -1) -> bytes:
    """Returns the content of a file, or `length` bytes of it from `start` on; fewer at its end.

    Raises:
        OSError: it can't be read.
    """
    with open_to_read(path) as file:
        if start:
            file.seek(start)
        return file.read(length)


def read_text(path: Path) -> str:
    """Returns the content of a text file in UTF-8, its ends of lines as \\n.

    Raises:
        OSError, UnicodeDecodeError: it can't be read.
    """
    return path.read_text("utf-8")


def read_asset(name: str) -> bytes:
    """Returns the content of a file that comes with the package."""
    return (resources.files("sam_jax") / "assets" / name).read_bytes()


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        OSError: it can't be read.
        BadRecord: it is no JSON.
    """
    return parse_json(read_bytes(path), path)


def read_json_lines(path: Path) -> list[Any]:
    """Returns the content of a file with a line of JSON per record.

    Raises:
        OSError: it can't be read.
        BadRecord: a line is no JSON.
    """
    return [parse_json(line, path) for line in read_text(path).splitlines()]


def parse_json(data: bytes | str, where: object) -> Any:
    """Returns the content of JSON that came from `where`.

    Raises:
        BadRecord: it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord("JSON cannot be read", where, error) from error


def open_to_read(path: Path) -> BufferedReader:
    """Opens a file to read its bytes."""
    return path.open("rb")


def digest_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Writing


def make_folder(path: Path) -> None:
    """Makes a folder, with those above it, if it is not there."""
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def finding_full_disk(path: Path) -> Iterator[None]:
    """Turns whatever is raised on a full disk into the system's error, with the name of what was written.

    Libraries raise errors of their own there (safetensors, PyTorch, ArrayRecord, TensorStore; numpy of a short write),
    and the system's error names no file. Anything that has another cause goes on as it is.

    Raises:
        OSError: there is no space left for `path`, or no more quota, or a limit on the size of a file is reached.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _full_disk_errno(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _full_disk_errno(error: BaseException | None, path: Path) -> int | None:
    while error is not None:
        for number in FULL_DISK:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return errno.ENOSPC if there is not None and shutil.disk_usage(there).free < LEAST_FREE else None


def write(path: Path, content: str | bytes) -> None:
    """Writes a file's whole content, text as UTF-8; for what lies at a temporary name, see `replacing`."""
    with finding_full_disk(path):
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def open_to_write(path: Path, newline: str | None = None) -> TextIO:
    """Opens a text file in UTF-8 to write it from the start; for what lies at a temporary name, see `replacing`."""
    return path.open("w", encoding="utf-8", newline=newline)


def open_to_write_bytes(path: Path, *, append: bool = False) -> BufferedWriter:
    """Opens a file to write its bytes from the start, or after what is there; for a temporary name, see `replacing`."""
    return path.open("ab" if append else "wb")


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Adds a line to a text file. A process that dies leaves at most a part of it.

    Args:
        sync: wait until the line is on disk, where losing it with the machine would lose somebody's work.
    """
    with finding_full_disk(path), path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name; the file or folder that was written there becomes `path` at the end, if all went well.

    The name is hidden, ends in .tmp and is another one each time: of two processes or threads that write one file, the
    last one's stays, whole. What a killed process has left stays, too, and nothing reads it.
    """
    temporary = _temporary_name(path)
    try:
        with finding_full_disk(path):
            yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextlib.contextmanager
def replacing_folder(path: Path, replaced: Sequence[str]) -> Iterator[Path]:
    """Gives an empty folder, which becomes `path` at the end, if all went well; other files that are there stay.

    Where the system can exchange two folders (Linux, macOS), whoever looks sees the old one or the new one at any
    time, whole. Elsewhere there is a moment in which `path` has another name, ending in .old.

    Args:
        replaced: patterns of the names of files in the old folder that the new one takes the place of.
    """
    target = path.resolve()  # behind links
    temporary = _temporary_name(target)
    old = temporary.with_suffix(".old")
    try:
        with finding_full_disk(target):
            make_folder(temporary)
            yield temporary
        if not target.exists():
            temporary.replace(target)
            return
        for kept in target.iterdir():
            if not any(kept.match(pattern) for pattern in replaced) and not (temporary / kept.name).exists():
                _link(kept, temporary / kept.name)
        shutil.copymode(target, temporary)
        if not _exchange(temporary, target):
            target.replace(old)
            temporary.replace(target)
    finally:
        remove(temporary)
        if target.exists():
            remove(old)


def _link(source: Path, target: Path) -> None:
    """Gives a file or a folder with all in it a second name; copies it where there can be none."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=lambda a, b: _link(Path(a), Path(b)))
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names at once; False: the system or the file system cannot."""
    if os.name != "posix":
        return False
    library, names = ctypes.CDLL(None), (os.fsencode(first), os.fsencode(second))
    if hasattr(library, "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD: from the working folder on; RENAME_EXCHANGE
        return library.renameat2(here, names[0], here, names[1], exchange) == 0
    if hasattr(library, "renamex_np"):
        return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
    return False


@contextlib.contextmanager
def holding(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes that do the same out of a folder while the block runs; makes the folder.

    The system frees the lock of a process that dies; its file, which is empty, stays. A folder may be held for several
    things at a time.

    Args:
        what: is done, a word that is part of a hidden file's name.

    Raises:
        InUse: another process holds it; says which one, and since when.
        OSError: it can't be written.
    """
    holder = folder / f".{what}.holder"
    lock = FileLock(folder / f".{what}.lock", timeout=0)
    try:
        make_folder(folder)
        lock.acquire()
    except Timeout as error:
        by = "another process"
        with contextlib.suppress(FileNotFoundError):  # it holds the lock, and has not yet written who it is
            by = read_text(holder)
        raise InUse(f"{folder} is in use by {by}; wait until that has ended, or give another folder") from error
    except OSError as error:
        raise OSError(f"the output folder {folder} can't be written: {error.strerror or error}") from error
    try:
        since, command = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        write_atomically(holder, f"process {os.getpid()} on {socket.gethostname()} since {since} ({command[:200]})")
        yield
    finally:
        remove(holder)
        lock.release()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file's whole content, text as UTF-8, in place of what is there."""
    with replacing(path) as temporary:
        write(temporary, content)


def copy(source: Path, target: Path) -> None:
    """Copies a file; what is at the target is replaced."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def remove(path: Path) -> None:
    """Removes a file, or a folder with all in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
