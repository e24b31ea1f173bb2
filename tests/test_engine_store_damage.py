"""The store on a disk that fills and on damaged files: an error that says which, and nothing is lost."""

import errno
import shutil
import sqlite3
import uuid

import numpy as np
import pytest

from sam_jax.commands import main as cli
from sam_jax.engine import schema
from sam_jax.engine.models import add_model, list_models
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import FILE, Store
from sam_jax.errors import UserError
from sam_jax.ops.rle import encode_rle

CONNECT = schema._connect


def limit_pages(monkeypatch, pages):
    """Lets no connection make its file larger than a number of pages, which SQLite reports as a full disk."""

    def connect(path):
        db = CONNECT(path)
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(schema, "_connect", connect)


def save_one(store):
    rle = encode_rle(np.random.default_rng(0).random((90, 120)) < 0.5)
    return store.save_mask(MaskRecord(id=uuid.uuid4().hex, picture_id=1, annotator="ann", segmentation=rle))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "project")
    store.add_images(tmp_path, ["a.jpg"])
    store.set_size(1, 120, 90)
    add_model(store, "sam", "promoted", "small")
    save_one(store)
    return store


@pytest.mark.parametrize("pages", [1, 8])
def test_a_new_project_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch, pages):
    limit_pages(monkeypatch, pages)
    with pytest.raises(OSError, match="No space left on device") as caught:
        Store(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / FILE)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert Store(tmp_path).images() == []


def test_a_project_on_a_full_disk_keeps_what_was_saved_and_goes_on_with_more_space(store, monkeypatch):
    monkeypatch.setattr(schema, "_connect", CONNECT)
    limit_pages(monkeypatch, 40)
    full = Store(store.folder)
    saved = [save_one(full)]
    with pytest.raises(OSError, match="No space left on device"):
        saved += map(save_one, [full] * 100)
    assert len(full.masks(1)) == 1 + len(saved)
    assert not full._db().in_transaction
    save_one(store)
    assert len(full.masks(1)) == 2 + len(saved)


def test_whatever_sqlite_says_on_a_full_disk_the_space_is_named(store, monkeypatch, capsys):
    file = store.folder / FILE
    file.unlink()
    file.mkdir()  # cannot be opened
    assert cli.main(["engine", "status", str(store.folder)]) == 2
    assert "unable to open database file" in capsys.readouterr().err
    usage = shutil.disk_usage(store.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    assert cli.main(["engine", "status", str(store.folder)]) == 2
    written = capsys.readouterr().err
    assert "No space left on device" in written
    assert written.count("\n") == 1


def damage(store, statement):
    """Changes the file behind the store's back."""
    with sqlite3.connect(store.folder / FILE) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(statement)


def read_all(folder):
    store = Store(folder)
    return store.stage, store.masks(1), list_models(store)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE masks SET record = '{'",
        "UPDATE masks SET record = '[]'",
        "UPDATE masks SET record = '{}'",
        "UPDATE masks SET record = replace(record, 'annotator', 'annotatos')",
        "UPDATE masks SET record = replace(record, 'accepted', 'acceptee')",
        "UPDATE masks SET record = CAST(x'7b22ff' AS TEXT)",
        "UPDATE models SET record = '{'",
        "UPDATE models SET record = '7'",
        "UPDATE models SET record = replace(record, 'held_out', 'held_ous')",
        "UPDATE settings SET value = 'lunch'",
        "DELETE FROM settings",
        "DELETE FROM sqlite_master WHERE name = 'masks'",
        "UPDATE sqlite_master SET sql = replace(sql, 'record', 'recorc') WHERE name = 'models'",
        # "CREATE TABLE m \xa0 x": what is wrong there is no text
        "UPDATE sqlite_master SET sql = CAST(x'435245415445205441424c45206d20a02078' AS TEXT) WHERE name = 'models'",
    ],
)
def test_damaged_values_and_tables_are_told_by_name(store, statement):
    damage(store, statement)
    with pytest.raises(UserError, match=r"engine\.sqlite.* is damaged"):
        read_all(store.folder)


def test_a_large_store_is_not_read_through_and_damage_is_told_where_it_is_met(store, monkeypatch):
    for _ in range(60):
        save_one(store)
    with sqlite3.connect(store.folder / FILE) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    file = store.folder / FILE
    content = bytearray(file.read_bytes())
    content[-40960:] = b"\xff" * 40960
    for ending in ("-wal", "-shm"):
        (store.folder / f"{FILE}{ending}").unlink(missing_ok=True)
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        Store(store.folder)
    monkeypatch.setattr(schema, "MAX_CHECKED", 1000)
    large = Store(store.folder)
    with pytest.raises(UserError, match="is damaged"):
        large.masks(1)
    with pytest.raises(UserError, match="is damaged"):
        list(map(save_one, [large] * 10))


def test_a_mistake_of_ours_is_no_damage(store):
    with pytest.raises(sqlite3.IntegrityError), store.transaction() as db:
        db.execute("INSERT INTO settings VALUES ('stage', 'automatic')")
    with pytest.raises(sqlite3.ProgrammingError):
        store.rows("SELECT ?", ())
