"""The store: a project's images, their annotators, and masks with their history, in one SQLite file.

Every change is one short transaction, which is on disk when the call returns. A mask and its history change together.
Any number of threads and processes may use the store of a folder at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_jax.engine import schema, statements
from sam_jax.engine.records import (
    MaskRecord,
    Outcome,
    Stage,
    StoredImage,
    WorkedImage,
    check_annotator,
    check_choice,
    check_classes,
    check_name,
    check_seconds,
)
from sam_jax.errors import MissingFile, UserError

FILE = "engine.sqlite"


class Store:
    """The store of a project's folder.

    Args:
        folder: folder of the project.
        create: create the store if it does not exist.

    Raises:
        MissingFile: the store does not exist and `create` is False.
        UserError: the file is no store, damaged, or of another version. Later calls raise it too, if they meet damage.
        OSError: it can't be opened. Later calls raise it too, if the disk is full or others lock the file for too long.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder = folder
        self._path = self.folder / FILE
        self._local = threading.local()
        if not self._path.exists():
            if not create:
                raise MissingFile(f"expected a project at {self.folder}, found no {FILE}; see sam-jax engine init")
            schema.create(self._path)
        schema.check_whole(self._db(), self._path)

    # Connections and transactions

    def _db(self) -> sqlite3.Connection:
        if getattr(self._local, "process", None) != os.getpid():
            # A connection doesn't survive a fork: the child may neither use nor close its parent's.
            self._local.inherited = getattr(self._local, "db", None)
            self._local.db, self._local.process = schema.connect(self._path), os.getpid()
        return self._local.db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Runs the block as one transaction, which is rolled back if the block raises an error.

        It waits for other writers, who then wait for it, so nothing slow belongs in the block.
        """
        with schema.explaining(self._path):
            db = self._db()
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Gives the connection to read from, without waiting for writers."""
        with schema.explaining(self._path):
            yield self._db()

    def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """Returns the rows of a query, without waiting for writers."""
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    # Stage

    @property
    def stage(self) -> Stage:
        """The stage that the project is in."""
        with self._reading() as db:
            return statements.stage_of(db)

    def set_stage(self, stage: Stage) -> None:
        """Moves the project to any stage, and logs it; `stages.move_to_stage` goes only one step at a time."""
        check_choice("stage", stage, Stage)
        with self.transaction() as db:
            if statements.stage_of(db) != stage:
                statements.log_event(db, "stage", {"from": statements.stage_of(db), "to": stage})
                db.execute("UPDATE settings SET value = ? WHERE key = 'stage'", (stage,))

    # Images

    def add_images(self, root: Path, names: Iterable[str], held_out: float = 0.0) -> int:
        """Appends images to the queue; images that are in the store already are left unchanged.

        Args:
            root: folder of the images.
            names: paths relative to it.
            held_out: fraction of all images of the project on which models are evaluated and never trained, from 0 up
                to but not including 1. As many of the new images as it takes are drawn, by a hash of their names.

        Returns:
            The number of new images.

        Raises:
            UserError: a name leads out of the folder, or `held_out` is out of range.
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
        """Returns an image; raises a UserError if there is none of that id."""
        with self._reading() as db:
            return statements.image_of(db, picture_id)

    def images(self, state: str | None = None) -> list[StoredImage]:
        """Returns all images, or those in one state: free, open or done."""
        rows = self.rows(f"{statements.IMAGE} WHERE state = ? OR ? IS NULL ORDER BY pictures.id", (state, state))
        return [statements.to_image(row) for row in rows]

    def set_size(self, picture_id: int, width: int, height: int) -> None:
        """Records the size of an upright image, in pixels, which its masks must have.

        Raises:
            UserError: the size is not positive, or the image has masks of another size.
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

    # Assignment of images to annotators

    def claim(self, annotator: str) -> StoredImage | None:
        """Returns the unfinished image that the annotator opened last; or else opens the next free image for them.

        Free images come in the order of the queue, pre-filled ones first. No two annotators get the same image.

        Returns:
            The image; None if there is nothing left to do.
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
        """Returns the images that `claim` would open next if nobody else claimed any, without opening them."""
        check_annotator(annotator)
        with self._reading() as db:
            return [statements.to_image(row) for row in statements.free_images(db, annotator, count)]

    def finish(self, picture_id: int, annotator: str, outcome: Outcome = "done", seconds: float = 0.0) -> None:
        """Ends an annotator's work on an image. A repeated call changes nothing.

        Args:
            outcome: done accepts the masks that are still proposed, since the annotator has seen and kept them; skipped
                makes the image available to others.
            seconds: time spent on the image since it was opened.

        Raises:
            UserError: the annotator has not opened the image.
        """
        check_choice("outcome", outcome, Outcome)
        check_seconds(seconds)
        with self.transaction() as db:
            state, holder = statements.work_state(db, picture_id)
            if (state, holder) == ("open", annotator):
                at = statements.now()
                if outcome == "done":
                    for mask in statements.masks_of(db, picture_id):
                        if mask.state == "proposed":
                            accepted = dataclasses.replace(mask, state="accepted", annotator=annotator)
                            statements.write_mask(db, accepted, at)
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
                raise statements.held_by_another(picture_id, annotator, state, holder)

    def release(self, idle_hours: float, annotator: str | None = None) -> list[StoredImage]:
        """Makes idle open images available to everybody again, and returns them. Their masks stay.

        Args:
            idle_hours: least number of hours since the image was opened or a mask on it was changed.
            annotator: whose images to release; None means everybody's.
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

    def take(self, picture_id: int, annotator: str) -> None:
        """Opens an image that the annotator has finished or skipped, or that is free. A repeated call changes nothing.

        Raises:
            UserError: somebody else has the image open, or has finished it.
        """
        check_annotator(annotator)
        with self.transaction() as db:
            state, holder = statements.work_state(db, picture_id)
            if holder not in (None, annotator):
                raise statements.held_by_another(picture_id, annotator, state, holder)
            if state != "open":
                db.execute("DELETE FROM skips WHERE picture_id = ? AND annotator = ?", (picture_id, annotator))
                statements.open_image(db, picture_id, annotator)

    def work_state(self, picture_id: int) -> tuple[str, str | None]:
        """Returns an image's state (free, open or done) and its annotator, who is None if it is free."""
        with self._reading() as db:
            return statements.work_state(db, picture_id)

    def work_of(self, annotator: str) -> list[WorkedImage]:
        """Returns the images that an annotator has open, has finished, or has skipped and others have not taken.

        They come in the order in which that happened. Looking at an image changes neither its state nor the order.
        """
        check_annotator(annotator)
        return [WorkedImage(*row) for row in self.rows(statements.WORK, {"who": annotator})]

    # Classes

    @property
    def classes(self) -> list[str]:
        """The project's list of classes, which is offered as names for masks; empty if there is none."""
        with self._reading() as db:
            return statements.classes_of(db)

    def set_classes(self, names: Sequence[str]) -> None:
        """Replaces the list of classes; saved masks keep theirs. Raises a UserError for empty or repeated ones."""
        classes = check_classes(names)
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES ('classes', ?)", (json.dumps(classes),))

    # Masks

    def save_mask(self, record: MaskRecord) -> MaskRecord:
        """Adds a mask, or changes the one with the same id. A repeated call changes nothing.

        Raises:
            UserError: the mask does not have the image's size, or that is not known yet (see `set_size`); its image or
                origin has changed; it was deleted; or somebody else has the image open.
        """
        with self.transaction() as db:
            statements.save_mask(db, record, statements.now())
        return record

    def prefill(self, picture_id: int, records: Sequence[MaskRecord], source: str) -> bool:
        """Puts a model's masks on an image that nobody has opened, replacing masks that were pre-filled before.

        Args:
            source: description of the model and its settings, by which `to_prefill` knows which images are done.

        Returns:
            Whether the masks were saved. Nothing changes if somebody has opened the image, or if it is held out.

        Raises:
            UserError: see `save_mask`.
            ValueError: a mask is of another image, or is not prefilled and proposed.
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
                    statements.set_deleted(db, mask.id, mask.annotator, deleted=True, at=at)
            for record in records:
                statements.save_mask(db, record, at)
            db.execute("UPDATE pictures SET prefilled = ? WHERE id = ?", (source, picture_id))
        return True

    def to_prefill(self, source: str) -> list[StoredImage]:
        """Returns the images that `prefill` accepts and this source has not filled yet, in the order of `claim`."""
        rows = self.rows(
            f"{statements.IMAGE} WHERE state = 'free' AND split = 'train' AND prefilled IS NOT ? "
            "AND NOT EXISTS (SELECT 1 FROM skips WHERE picture_id = pictures.id) ORDER BY pictures.id",
            (source,),
        )
        return [statements.to_image(row) for row in rows]

    def delete_mask(self, mask_id: str, annotator: str) -> None:
        """Deletes a mask; `restore_mask` brings it back. A repeated call changes nothing."""
        check_annotator(annotator)
        with self.transaction() as db:
            statements.set_deleted(db, mask_id, annotator, deleted=True, at=statements.now())

    def restore_mask(self, mask_id: str, annotator: str) -> MaskRecord:
        """Restores a deleted mask, and returns it."""
        check_annotator(annotator)
        with self.transaction() as db:
            return statements.set_deleted(db, mask_id, annotator, deleted=False, at=statements.now())

    def masks(self, picture_id: int) -> list[MaskRecord]:
        """Returns an image's masks, including rejected ones, by rank and then by age."""
        with self._reading() as db:
            return statements.masks_of(db, picture_id)

    def history(self, mask_id: str) -> list[dict[str, Any]]:
        """Returns all actions on a mask, oldest first.

        Returns:
            For each action `at` (UTC), `annotator`, `action` (save, delete or restore), `record`, the mask after it,
            and `before`, the mask before it or None.
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
