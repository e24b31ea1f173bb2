"""The SQLite file of the store: its tables, how it is created, and how it is opened."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sam_jax.errors import UserError
from sam_jax.files import make_folder, remove

VERSION = 1
APPLICATION = 0x53414A58  # "SAJX": tells the store from any other SQLite file
BUSY_SECONDS = 60.0  # how long a writer waits for another one
MAX_CHECKED = 1 << 28  # bytes of a file that is read through when it is opened; damage of larger ones shows on the way
MIN_FREE = 1 << 16  # bytes; with less, SQLite fails in many ways, most of which do not name the cause

TABLES = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    root_id INTEGER NOT NULL REFERENCES roots,
    name TEXT NOT NULL,
    width INTEGER NOT NULL DEFAULT 0 CHECK (width >= 0),
    height INTEGER NOT NULL DEFAULT 0 CHECK (height >= 0),
    split TEXT NOT NULL CHECK (split IN ('train', 'held_out')),
    prefilled TEXT,                              -- what made the masks that were put in
    state TEXT NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'open', 'done')),
    annotator TEXT CHECK ((annotator IS NULL) = (state = 'free')),
    stage TEXT,                                  -- in which it was opened last
    opened TEXT, finished TEXT,
    seconds REAL NOT NULL DEFAULT 0,
    UNIQUE (root_id, name)
);
CREATE INDEX free_pictures ON pictures (prefilled IS NULL, id) WHERE state = 'free';
CREATE INDEX open_pictures ON pictures (annotator, opened) WHERE state = 'open';
CREATE TABLE skips (
    picture_id INTEGER NOT NULL REFERENCES pictures,
    annotator TEXT NOT NULL, at TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (picture_id, annotator)
) WITHOUT ROWID;
CREATE TABLE masks (
    id TEXT PRIMARY KEY,
    picture_id INTEGER NOT NULL REFERENCES pictures,
    stage TEXT NOT NULL,                         -- in which it was first saved
    deleted INTEGER NOT NULL DEFAULT 0,
    rank INTEGER NOT NULL,
    record TEXT NOT NULL,                        -- MaskRecord as JSON
    created TEXT NOT NULL, changed TEXT NOT NULL
);
CREATE INDEX masks_of_picture ON masks (picture_id);
CREATE TABLE history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mask_id TEXT NOT NULL REFERENCES masks,
    at TEXT NOT NULL, annotator TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('save', 'delete', 'restore')),
    record TEXT NOT NULL                         -- after it
);
CREATE INDEX history_of_mask ON history (mask_id);
CREATE TABLE models (number INTEGER PRIMARY KEY, at TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, kind TEXT NOT NULL, record TEXT NOT NULL);
CREATE TRIGGER history_is_not_changed BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER history_is_not_deleted BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER masks_are_not_deleted BEFORE DELETE ON masks BEGIN SELECT RAISE(ABORT, 'masks are only marked'); END;
"""


def create(path: Path) -> None:
    """Creates an empty store, unless there is one.

    The file appears only once it is complete, and several processes may create it at the same time.

    Raises:
        OSError: the folder can't be written to, or the disk is full.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with explaining(path), contextlib.closing(_connect(temporary)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN IMMEDIATE; {TABLES}")
            db.execute("INSERT INTO settings VALUES ('stage', 'assisted-manual')")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        for ending in ("", "-wal", "-shm"):
            remove(temporary.with_name(temporary.name + ending))


def connect(path: Path) -> sqlite3.Connection:
    """Opens a connection for one thread, on which a commit returns once its changes are on disk.

    Raises:
        UserError: the file is no store, damaged, or of another version.
        OSError: it can't be opened.
    """
    with explaining(path):
        db = _connect(path)
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
    if application != APPLICATION:
        db.close()
        raise UserError(f"expected a store of the data engine at {path}, got another SQLite file")
    if version != VERSION:
        db.close()
        raise UserError(
            f"{path} is a store of version {version}, this sam_jax knows version {VERSION}; "
            "use the sam_jax that wrote it, or a newer one"
        )
    db.row_factory = sqlite3.Row
    return db


def check_whole(db: sqlite3.Connection, path: Path) -> None:
    """Looks for damage before anything is read or written, if the file is small enough to be read in a moment.

    Raises:
        UserError: the file is damaged.
        OSError: it can't be read.
    """
    with explaining(path):
        if path.stat().st_size <= MAX_CHECKED:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise damaged(path, found)


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns what SQLite raises in the block into an error that says what is wrong with the file.

    Raises:
        OSError: the disk is full, others have locked the file for too long, or it can't be opened or written.
        UserError: it is no SQLite file, or damaged: pages, tables that are missing, or values that can't be read.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_NOTADB:
            raise UserError(f"expected a store of the data engine at {path}: {error}") from error
        if type(error) is sqlite3.DatabaseError or (
            isinstance(error, sqlite3.OperationalError) and code == sqlite3.SQLITE_ERROR
        ):
            raise damaged(path, error) from error
        if isinstance(error, sqlite3.OperationalError):
            raise _of_system(path, error) from error
        raise  # a constraint, or a call that is wrong
    except UnicodeDecodeError as error:  # of what SQLite says, which quotes the damaged schema
        raise damaged(path, f"its schema is no text: {error}") from error


def _of_system(path: Path, error: sqlite3.OperationalError) -> OSError:
    full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
    if full or shutil.disk_usage(path.parent).free < MIN_FREE:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return OSError(f"{path}: {error}")


def damaged(path: Path, what: object) -> UserError:
    """Returns the error for a file in which SQLite found damage."""
    return UserError(
        f"{path} is damaged ({what}); put back a copy of it, or save what can be read: sqlite3 {path.name} .recover"
    )


def _connect(path: Path) -> sqlite3.Connection:
    # check_same_thread: each thread has its own, but the collector may close one from any thread.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db
