"""A project's state in one SQLite file: images, who works on which, masks and all that was done to them.

Every change is one short transaction that is on disk when the call returns, and masks change together with their
history. Any number of threads and processes may use a folder's store at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sam_jax.engine import schema, statements
from sam_jax.engine.records import (
    MaskRecord,
    Outcome,
    Stage,
    StoredImage,
    check_annotator,
    check_choice,
    check_name,
    check_seconds,
)
from sam_jax.errors import MissingFile, UserError

FILE = "engine.sqlite"


class Store:
    """The store of a project's folder.

    Args:
        folder: of the project.
        create: make the store if there is none.

    Raises:
        FileNotFoundError: there is none, and it isn't to be made.
        ValueError: another kind of file is there, or a store that a newer version made.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder = folder
        self._path = self.folder / FILE
        self._local = threading.local()
        if not self._path.exists():
            if not create:
                raise MissingFile(f"expected a project at {self.folder}, found no {FILE}; see sam-jax engine init")
            schema.create(self._path)
        self._db()

    # Connections and transactions

    def _db(self) -> sqlite3.Connection:
        if getattr(self._local, "process", None) != os.getpid():
            # A connection doesn't survive a fork: the child may neither use nor close its parent's.
            self._local.inherited = getattr(self._local, "db", None)
            self._local.db, self._local.process = schema.connect(self._path), os.getpid()
        return self._local.db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing. It waits for other writers and keeps them waiting: nothing slow inside."""
        db = self._db()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked for too long, no space left
            raise OSError(f"{self._path}: {error}") from error
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """What a query finds, without waiting for writers."""
        return self._db().execute(query, values).fetchall()

    # Stage

    @property
    def stage(self) -> Stage:
        return statements.stage_of(self._db())

    def set_stage(self, stage: Stage) -> None:
        check_choice("stage", stage, Stage)
        with self.transaction() as db:
            if statements.stage_of(db) != stage:
                statements.log(db, "stage", {"from": statements.stage_of(db), "to": stage})
                db.execute("UPDATE settings SET value = ? WHERE key = 'stage'", (stage,))

    # Images

    def add_images(self, root: Path, names: Iterable[str], held_out: float = 0.0) -> int:
        """Adds images at the end of the queue; those that are there already stay as they are.

        Args:
            root: folder of the images.
            names: paths below it.
            held_out: share of all images of the project that models are judged on and never trained on; the new ones
                make it up, drawn by a hash of their names.

        Returns:
            How many are new.

        Raises:
            ValueError: a name that leads out of the folder, or a share that is none.
        """
        if not 0 <= held_out < 1:
            raise UserError(f"expected a share of held-out images of at least 0 and below 1, got {held_out}")
        folder = str(root.resolve())
        wanted = dict.fromkeys(check_name(name) for name in names)
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO roots (path) VALUES (?)", (folder,))
            (root_id,) = db.execute("SELECT id FROM roots WHERE path = ?", (folder,)).fetchone()
            known = {row["name"] for row in db.execute("SELECT name FROM pictures WHERE root_id = ?", (root_id,))}
            new = [name for name in wanted if name not in known]
            total, held = db.execute("SELECT count(*), coalesce(sum(split = 'held_out'), 0) FROM pictures").fetchone()
            missing = max(0, round(held_out * (total + len(new))) - held)
            drawn = set(sorted(new, key=lambda name: hashlib.sha256(name.encode()).digest())[:missing])
            db.executemany(
                "INSERT INTO pictures (root_id, name, split) VALUES (?, ?, ?)",
                [(root_id, name, "held_out" if name in drawn else "train") for name in new],
            )
        return len(new)

    def image(self, picture_id: int) -> StoredImage:
        """Raises ValueError if there is none of that number."""
        return statements.image_of(self._db(), picture_id)

    def images(self, state: str | None = None) -> list[StoredImage]:
        """All, or those that are free, open or done."""
        rows = self.rows(f"{statements.IMAGE} WHERE state = ? OR ? IS NULL ORDER BY pictures.id", (state, state))
        return [statements.to_image(row) for row in rows]

    def set_size(self, picture_id: int, width: int, height: int) -> None:
        """Notes the size of an upright image, which masks must have.

        Raises:
            ValueError: no size, or another one than it has masks of.
        """
        if width < 1 or height < 1:
            raise UserError(f"expected a width and a height of at least 1, got {width} x {height}")
        with self.transaction() as db:
            stored = statements.image_of(db, picture_id)
            if (stored.width, stored.height) == (width, height):
                return
            if db.execute("SELECT 1 FROM masks WHERE picture_id = ?", (picture_id,)).fetchone():
                raise UserError(
                    f"{stored.name} is {width} x {height} and has masks of {stored.width} x {stored.height} pixels; "
                    "was the file replaced by another image?"
                )
            db.execute("UPDATE pictures SET width = ?, height = ? WHERE id = ?", (width, height, picture_id))

    # Who works on what

    def claim(self, annotator: str) -> StoredImage | None:
        """The image that the annotator opened last and hasn't finished; or else the next free one, opened for them.

        Free images come in their order, those with masks of a model first. No two annotators get the same one.

        Returns:
            None: there is nothing left to do.
        """
        check_annotator(annotator)
        with self.transaction() as db:
            row = db.execute(
                f"{statements.IMAGE} WHERE state = 'open' AND annotator = ? ORDER BY opened DESC LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is not None:
                return statements.to_image(row)
            for row in statements.free_images(db, annotator, 1):
                statements.open_image(db, row["id"], annotator)
                return statements.to_image(row)
            return None

    def upcoming(self, annotator: str, count: int) -> list[StoredImage]:
        """The images that `claim` would open next if nobody else did. Opens none."""
        check_annotator(annotator)
        return [statements.to_image(row) for row in statements.free_images(self._db(), annotator, count)]

    def finish(self, picture_id: int, annotator: str, outcome: Outcome = "done", seconds: float = 0.0) -> None:
        """Ends the work on an image. A repeated call changes nothing.

        done: masks that are still proposed were seen and left, so they are accepted. skipped: it is free again for
        others.

        Args:
            seconds: spent on the image since it was opened.

        Raises:
            ValueError: the annotator hasn't opened it.
        """
        check_choice("outcome", outcome, Outcome)
        check_seconds(seconds)
        with self.transaction() as db:
            state, holder = statements.work_on(db, picture_id)
            if (state, holder) == ("open", annotator):
                at = statements.now()
                if outcome == "done":
                    for mask in statements.masks_of(db, picture_id):
                        if mask.state == "proposed":
                            statements.write(db, dataclasses.replace(mask, state="accepted", annotator=annotator), at)
                    db.execute(
                        "UPDATE pictures SET state = 'done', finished = ?, seconds = seconds + ? WHERE id = ?",
                        (at, seconds, picture_id),
                    )
                else:
                    db.execute("INSERT INTO skips VALUES (?, ?, ?, ?)", (picture_id, annotator, at, seconds))
                    statements.free_image(db, picture_id)
                return
            before = statements.was_skipped(db, picture_id, annotator)
            if not (before if outcome == "skipped" else (state, holder) == ("done", annotator)):
                raise statements.not_theirs(picture_id, annotator, state, holder)

    def release(self, idle_hours: float, annotator: str | None = None) -> list[StoredImage]:
        """Gives open images back, for anybody to claim: those of people who went away. Masks stay.

        Args:
            idle_hours: since the image was opened and any mask of it was changed.
            annotator: whose; None: everybody's.
        """
        if not idle_hours >= 0:
            raise UserError(f"expected hours of at least 0, got {idle_hours}")
        with self.transaction() as db:
            rows = db.execute(
                f"{statements.IMAGE} WHERE state = 'open' AND (annotator = :who OR :who IS NULL) AND "
                "max(opened, coalesce((SELECT max(changed) FROM masks WHERE picture_id = pictures.id), '')) <= :since "
                "ORDER BY pictures.id",
                {"who": annotator, "since": statements.now(-idle_hours)},
            ).fetchall()
            for row in rows:
                statements.free_image(db, row["id"])
        return [statements.to_image(row) for row in rows]

    def back(self, annotator: str) -> StoredImage | None:
        """Opens the image again that the annotator finished or skipped last: it is the next that `claim` gives.

        Returns:
            None: there is none, or others have them now.
        """
        check_annotator(annotator)
        with self.transaction() as db:
            row = db.execute(
                "SELECT id, finished AS at FROM pictures WHERE state = 'done' AND annotator = :who UNION ALL "
                "SELECT id, at FROM skips JOIN pictures ON id = picture_id "
                "WHERE state = 'free' AND skips.annotator = :who ORDER BY at DESC LIMIT 1",
                {"who": annotator},
            ).fetchone()
            if row is None:
                return None
            db.execute("DELETE FROM skips WHERE picture_id = ? AND annotator = ?", (row["id"], annotator))
            statements.open_image(db, row["id"], annotator)
            return statements.image_of(db, row["id"])

    # Masks

    def save_mask(self, record: MaskRecord) -> MaskRecord:
        """Adds a mask, or changes the one of the same id. A repeated call changes nothing.

        Raises:
            ValueError: not of the image's size, which must be known; another image or origin than before; deleted
                before; or somebody else has the image open.
        """
        with self.transaction() as db:
            statements.save(db, record, statements.now())
        return record

    def prefill(self, picture_id: int, records: Sequence[MaskRecord], source: str) -> bool:
        """Puts a model's masks into an image that nobody has touched, in place of those put in before.

        Args:
            source: what made them, in words; `to_prefill` tells by it what has been done.

        Returns:
            False: somebody has or had the image, or it is held out: nothing was changed.

        Raises:
            ValueError: as `save_mask`; or a mask that isn't prefilled and proposed.
        """
        if bad := [r for r in records if (r.picture_id, r.origin, r.state) != (picture_id, "prefilled", "proposed")]:
            raise ValueError(
                f"expected masks of image {picture_id} that are prefilled and proposed, got one of image "
                f"{bad[0].picture_id} that is {bad[0].origin} and {bad[0].state}"
            )
        with self.transaction() as db:
            at, kept = statements.now(), {record.id for record in records}
            touched = db.execute(
                "SELECT 1 FROM pictures WHERE id = :id AND state <> 'free' "
                "UNION SELECT 1 FROM skips WHERE picture_id = :id",
                {"id": picture_id},
            ).fetchone()
            old = statements.masks_of(db, picture_id)
            if (
                touched
                or statements.image_of(db, picture_id).split == "held_out"
                or any(m.origin != "prefilled" for m in old)
            ):
                return False
            for mask in old:
                if mask.id not in kept:
                    statements.mark(db, mask.id, mask.annotator, deleted=True, at=at)
            for record in records:
                statements.save(db, record, at)
            db.execute("UPDATE pictures SET prefilled = ? WHERE id = ?", (source, picture_id))
        return True

    def to_prefill(self, source: str) -> list[StoredImage]:
        """The images that `prefill` would take and that have no masks of this source yet, in the order of `claim`."""
        rows = self.rows(
            f"{statements.IMAGE} WHERE state = 'free' AND split = 'train' AND prefilled IS NOT ? "
            "AND NOT EXISTS (SELECT 1 FROM skips WHERE picture_id = pictures.id) ORDER BY pictures.id",
            (source,),
        )
        return [statements.to_image(row) for row in rows]

    def delete_mask(self, mask_id: str, annotator: str) -> None:
        """Takes a mask away; `restore_mask` brings it back. A repeated call changes nothing."""
        check_annotator(annotator)
        with self.transaction() as db:
            statements.mark(db, mask_id, annotator, deleted=True, at=statements.now())

    def restore_mask(self, mask_id: str, annotator: str) -> MaskRecord:
        """Undoes `delete_mask`."""
        check_annotator(annotator)
        with self.transaction() as db:
            return statements.mark(db, mask_id, annotator, deleted=False, at=statements.now())

    def masks(self, picture_id: int) -> list[MaskRecord]:
        """An image's masks, those that are rejected too, by rank and then by age."""
        return statements.masks_of(self._db(), picture_id)

    def history(self, mask_id: str) -> list[dict[str, Any]]:
        """What was done to a mask, oldest first.

        Returns:
            `at` (UTC), `annotator`, `action` (save, delete, restore), `record`, which is the mask after it, and
            `before`, the mask before it or None.
        """
        rows = self.rows("SELECT at, annotator, action, record FROM history WHERE mask_id = ? ORDER BY id", (mask_id,))
        records = [json.loads(row["record"]) for row in rows]
        return [
            {
                "at": row["at"],
                "annotator": row["annotator"],
                "action": row["action"],
                "record": record,
                "before": before,
            }
            for row, record, before in zip(rows, records, [None, *records], strict=False)
        ]
