"""The SQL statements of the store. Those that write must run inside a transaction, see `Store.transaction`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sam_jax.engine.records import STAGES, MaskRecord, Stage, StoredImage, check_classes
from sam_jax.errors import UserError

IMAGE = (
    "SELECT pictures.id, path AS root, name, width, height, split FROM pictures "
    "JOIN roots ON roots.id = pictures.root_id"
)

WORK = (
    "SELECT id, name, state FROM ("
    "SELECT id, name, state, coalesce(CASE state WHEN 'done' THEN finished ELSE opened END, '') AS at FROM pictures "
    "WHERE annotator = :who UNION ALL "
    "SELECT id, name, 'skipped', at FROM skips JOIN pictures ON id = picture_id "
    "WHERE state = 'free' AND skips.annotator = :who) ORDER BY at"
)


def now(hours: float = 0.0) -> str:
    """Returns the current time, plus a number of hours, in UTC and ISO 8601."""
    return (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="microseconds")


def log_event(db: sqlite3.Connection, kind: str, record: dict[str, Any]) -> None:
    """Appends an event to the project's log."""
    db.execute("INSERT INTO events (at, kind, record) VALUES (?, ?, ?)", (now(), kind, json.dumps(record)))


def mask_to_json(record: MaskRecord) -> str:
    """Returns a mask as it is stored in the tables masks and history."""
    return json.dumps(dataclasses.asdict(record))


def mask_from_json(text: str) -> MaskRecord:
    """Returns the mask of a record in the tables masks or history; raises a UserError if it is damaged."""
    with reading_record("mask"):
        return MaskRecord(**json.loads(text))


@contextlib.contextmanager
def reading_record(what: str) -> Iterator[None]:
    """Turns what JSON and our records raise on values that are damaged into an error that says so.

    Raises:
        UserError: the record can't be read.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"the project's engine.sqlite is damaged: the record of a {what} can't be read ({str(error)[:200]}); put "
            "back a copy of the file"
        ) from error


def stage_of(db: sqlite3.Connection) -> Stage:
    """Returns the stage that the project is in; raises a UserError if that is damaged."""
    row = db.execute("SELECT value FROM settings WHERE key = 'stage'").fetchone()
    with reading_record("stage"):
        return STAGES[STAGES.index(row[0])]


def classes_of(db: sqlite3.Connection) -> list[str]:
    """Returns the project's list of classes; raises a UserError if that is damaged."""
    row = db.execute("SELECT value FROM settings WHERE key = 'classes'").fetchone()
    with reading_record("list of classes"):
        return [] if row is None else check_classes(json.loads(row[0]))


def to_image(row: sqlite3.Row) -> StoredImage:
    """Returns the image of a row that `IMAGE` selected."""
    fields = dict(row)
    return StoredImage(**fields | {"root": Path(fields["root"])})


def image_of(db: sqlite3.Connection, picture_id: int) -> StoredImage:
    """Returns an image; raises a UserError if there is none of that id."""
    row = db.execute(f"{IMAGE} WHERE pictures.id = ?", (picture_id,)).fetchone()
    if row is None:
        raise UserError(f"there is no image {picture_id}")
    return to_image(row)


def work_state(db: sqlite3.Connection, picture_id: int) -> tuple[str, str | None]:
    """Returns an image's state (free, open or done) and its annotator, who is None if it is free."""
    image_of(db, picture_id)
    return tuple(db.execute("SELECT state, annotator FROM pictures WHERE id = ?", (picture_id,)).fetchone())


def held_by_another(picture_id: int, annotator: str, state: str, holder: str | None) -> UserError:
    """Returns the error for an annotator who works on an image that is not theirs."""
    found = state if holder is None else f"{state} and {holder}'s"
    return UserError(f"expected image {picture_id} to be {annotator}'s, it is {found}")


def check_free_for(db: sqlite3.Connection, picture_id: int, annotator: str) -> None:
    """Raises a UserError if somebody else has the image open."""
    state, holder = work_state(db, picture_id)
    if state == "open" and holder != annotator:
        raise held_by_another(picture_id, annotator, state, holder)


def was_skipped(db: sqlite3.Connection, picture_id: int, annotator: str) -> bool:
    """Returns whether the annotator has skipped the image."""
    query = "SELECT 1 FROM skips WHERE picture_id = ? AND annotator = ?"
    return db.execute(query, (picture_id, annotator)).fetchone() is not None


def free_images(db: sqlite3.Connection, annotator: str, count: int) -> list[sqlite3.Row]:
    """Returns the next free images that the annotator has not skipped, pre-filled ones first."""
    return db.execute(
        f"{IMAGE} WHERE state = 'free' AND NOT EXISTS "
        "(SELECT 1 FROM skips WHERE picture_id = pictures.id AND skips.annotator = ?) "
        "ORDER BY prefilled IS NULL, pictures.id LIMIT ?",
        (annotator, count),
    ).fetchall()


def open_image(db: sqlite3.Connection, picture_id: int, annotator: str) -> None:
    """Assigns an image to an annotator."""
    db.execute(
        "UPDATE pictures SET state = 'open', annotator = ?, stage = ?, opened = ?, finished = NULL WHERE id = ?",
        (annotator, stage_of(db), now(), picture_id),
    )


def free_image(db: sqlite3.Connection, picture_id: int) -> None:
    """Makes an image available to all annotators."""
    db.execute("UPDATE pictures SET state = 'free', annotator = NULL WHERE id = ?", (picture_id,))


def masks_of(db: sqlite3.Connection, picture_id: int) -> list[MaskRecord]:
    """Returns the masks of an image that are not deleted, by rank and then by age."""
    rows = db.execute(
        "SELECT record FROM masks WHERE picture_id = ? AND NOT deleted ORDER BY rank, created, rowid", (picture_id,)
    )
    return [mask_from_json(row["record"]) for row in rows.fetchall()]


def save_mask(db: sqlite3.Connection, record: MaskRecord, at: str) -> None:
    """Validates a mask against the store and writes it; see `Store.save_mask`."""
    stored = image_of(db, record.picture_id)
    if [stored.height, stored.width] != list(record.segmentation["size"]):
        raise UserError(
            f"expected a mask of {stored.height} x {stored.width} (h, w), the size of {stored.name}, got "
            f"{record.segmentation['size']}"
            + ("; note the image's size first, with set_size" if not stored.width else "")
        )
    check_free_for(db, record.picture_id, record.annotator)
    row = db.execute("SELECT record, deleted FROM masks WHERE id = ?", (record.id,)).fetchone()
    if row is not None:
        if row["record"] == mask_to_json(record):
            return
        before = mask_from_json(row["record"])
        if row["deleted"]:
            raise UserError(f"mask {record.id} was deleted; restore it first")
        if (before.picture_id, before.origin) != (record.picture_id, record.origin):
            raise UserError(
                f"mask {record.id} is {before.origin}, on image {before.picture_id}; it can't become "
                f"{record.origin}, on image {record.picture_id}"
            )
    write_mask(db, record, at)


def write_mask(db: sqlite3.Connection, record: MaskRecord, at: str) -> None:
    """Adds or replaces a mask, and appends to its history."""
    text = mask_to_json(record)
    db.execute(
        "INSERT INTO masks VALUES (?, ?, ?, 0, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "rank = excluded.rank, record = excluded.record, changed = excluded.changed",
        (record.id, record.picture_id, stage_of(db), record.rank, text, at, at),
    )
    append_history(db, record.id, record.annotator, "save", text, at)


def set_deleted(db: sqlite3.Connection, mask_id: str, annotator: str, *, deleted: bool, at: str) -> MaskRecord:
    """Marks a mask as deleted or not, appends to its history, and returns the mask."""
    row = db.execute("SELECT deleted, record FROM masks WHERE id = ?", (mask_id,)).fetchone()
    if row is None:
        raise UserError(f"there is no mask {mask_id}")
    record = mask_from_json(row["record"])
    check_free_for(db, record.picture_id, annotator)
    if bool(row["deleted"]) != deleted:
        db.execute("UPDATE masks SET deleted = ?, changed = ? WHERE id = ?", (deleted, at, mask_id))
        append_history(db, mask_id, annotator, "delete" if deleted else "restore", row["record"], at)
    return record


def append_history(db: sqlite3.Connection, mask_id: str, annotator: str, action: str, record: str, at: str) -> None:
    """Appends an action (save, delete or restore) to the history of a mask."""
    db.execute(
        "INSERT INTO history (mask_id, at, annotator, action, record) VALUES (?, ?, ?, ?, ?)",
        (mask_id, at, annotator, action, record),
    )
