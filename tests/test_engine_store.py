"""The store of the data engine: nothing is lost or duplicated, and processes do not disturb each other."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest

from cases.app import read_events
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.ops.rle import encode_rle

HEIGHT, WIDTH = 12, 17


def rle(seed=0, size=(HEIGHT, WIDTH)):
    return encode_rle(np.random.default_rng(seed).random(size) < 0.5)


def mask(image, seed=0, **fields):
    fields = {"annotator": "ann", "segmentation": rle(seed)} | fields
    return MaskRecord(id=uuid.uuid4().hex, picture_id=image.id, **fields)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.add_images(tmp_path / "photos", [f"{n}.jpg" for n in range(4)])
    for image in store.images():
        store.set_size(image.id, WIDTH, HEIGHT)
    return store


WRITER = """
import sys, uuid
from pathlib import Path
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
store, rle = Store(Path(sys.argv[1])), {"size": [12, 17], "counts": sys.argv[2]}
while True:
    record = MaskRecord(id=uuid.uuid4().hex, picture_id=1, annotator="ann", segmentation=rle)
    store.save_mask(record)
    print(record.id, flush=True)
"""


def test_a_killed_writer_loses_no_mask_that_was_saved_and_leaves_no_half_one(store):
    printed = []
    for masks in (1, 7, 23):
        command = [sys.executable, "-c", WRITER, str(store.folder), rle()["counts"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            printed += [writer.stdout.readline().strip() for _ in range(masks)]
            os.kill(writer.pid, signal.SIGKILL)
            printed += [line.strip() for line in writer.stdout if line.endswith("\n")]
    again = Store(store.folder)
    found = [record.id for record in again.masks(1)]
    assert set(printed) <= set(found)
    assert len(found) <= len(printed) + 3  # one a writer may be on disk without having been told of
    assert [len(again.history(id)) for id in found] == [1] * len(found)
    assert again.rows("PRAGMA integrity_check")[0][0] == "ok"


FORKER = """
import os, sys, uuid
from pathlib import Path
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
store, rle = Store(Path(sys.argv[1])), {"size": [12, 17], "counts": sys.argv[2]}
def save(annotator):
    store.save_mask(MaskRecord(id=uuid.uuid4().hex, picture_id=1, annotator=annotator, segmentation=rle))
save("before")
child = os.fork()
for _ in range(20):
    save("child" if child == 0 else "parent")
if child == 0:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_process_goes_on_with_a_connection_of_its_own(store):
    subprocess.run([sys.executable, "-c", FORKER, str(store.folder), rle()["counts"]], check=True)
    annotators = [record.annotator for record in store.masks(1)]
    assert sorted(annotators) == ["before"] + ["child"] * 20 + ["parent"] * 20
    assert store.rows("PRAGMA integrity_check")[0][0] == "ok"


CLAIMER = """
import sys
from pathlib import Path
from sam_jax.engine.store import Store
store, annotator = Store(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
while image := store.claim(annotator):
    print(image.id, flush=True)
    store.finish(image.id, annotator)
"""


def test_annotators_in_several_processes_and_threads_never_get_the_same_image(tmp_path):
    store = Store(tmp_path)
    store.add_images(tmp_path, [f"{n}.jpg" for n in range(120)])
    claimed = []

    def work(annotator):
        while image := store.claim(annotator):
            claimed.append(image.id)
            store.finish(image.id, annotator)

    def process(annotator):
        command = [sys.executable, "-c", CLAIMER, str(tmp_path), annotator]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    processes = [process("a"), process("b")]
    threads = [threading.Thread(target=work, args=(name,)) for name in "cd"]
    for running in processes:
        running.stdin.write("go\n")
        running.stdin.flush()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for running in processes:
        claimed += [int(line) for line in running.communicate()[0].split()]
    assert sorted(claimed) == list(range(1, 121))


def test_stores_made_at_the_same_time_are_one(tmp_path):
    barrier, added = threading.Barrier(8), []

    def make(name):
        barrier.wait()
        added.append(Store(tmp_path).add_images(tmp_path, [name]))

    threads = [threading.Thread(target=make, args=(f"{n}.jpg",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert added == [1] * 8
    assert len(Store(tmp_path).images()) == 8
    assert {path.name for path in tmp_path.iterdir()} <= {"engine.sqlite", "engine.sqlite-wal", "engine.sqlite-shm"}


def test_a_repeated_save_doubles_nothing_and_a_changed_one_is_an_update(store):
    record = mask(store.image(1), prompts=[{"type": "point", "x": 3, "y": 4, "label": 1}], model="7", seconds=2.5)
    for _ in range(3):
        store.save_mask(record)
    assert store.masks(1) == [record]
    changed = dataclasses.replace(record, segmentation=rle(1), name="cup", seconds=4.0)
    store.save_mask(changed)
    assert store.masks(1) == [changed]
    first, second = store.history(record.id)
    assert first["action"] == second["action"] == "save"
    assert first["annotator"] == "ann"
    assert first["at"] < second["at"]
    assert first["before"] is None
    assert second["before"] == dataclasses.asdict(record) == first["record"]
    assert second["record"]["seconds"] == 4.0
    assert second["record"]["prompts"] == record.prompts


def test_a_deleted_mask_comes_back_whole(store):
    record = mask(store.image(1))
    store.save_mask(record)
    store.delete_mask(record.id, "ann")
    store.delete_mask(record.id, "ann")
    assert store.masks(1) == []
    with pytest.raises(ValueError, match="restore it first"):
        store.save_mask(dataclasses.replace(record, name="late"))
    assert store.restore_mask(record.id, "bea") == record
    assert store.masks(1) == [record]
    assert [(e["action"], e["annotator"]) for e in store.history(record.id)] == [
        ("save", "ann"),
        ("delete", "ann"),
        ("restore", "bea"),
    ]


def test_history_can_not_be_changed(store):
    record = store.save_mask(mask(store.image(1)))
    for statement in ("UPDATE history SET annotator = 'x'", "DELETE FROM history", "DELETE FROM masks"):
        with pytest.raises(sqlite3.IntegrityError), store.transaction() as db:
            db.execute(statement)
    assert store.masks(1) == [record]
    assert len(store.history(record.id)) == 1


def test_a_failed_transaction_changes_nothing(store):
    def fail():
        with store.transaction() as db:
            db.execute("UPDATE pictures SET split = 'held_out'")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {image.split for image in store.images()} == {"train"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segmentation": rle(0, (WIDTH, HEIGHT))}, r"expected a mask of 12 x 17"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "garbage"}}, "run lengths|runs of"),
        ({"segmentation": encode_rle(np.zeros((HEIGHT, WIDTH), bool))}, "at least one pixel"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 104]}}, "as a string"),
        ({"state": "proposed"}, "manual mask to be accepted"),
        ({"state": "good"}, "proposed, accepted, edited, rejected"),
        ({"origin": "dreamt"}, "manual, prefilled, automatic"),
        ({"annotator": " "}, "annotator's name"),
        ({"seconds": float("nan")}, "finite"),
        ({"seconds": -1}, "at least 0"),
        ({"rank": True}, "whole number"),
        ({"name": "x" * 201}, "at most 200"),
        ({"prompts": [{"type": "point", "x": 1, "y": "2", "label": 1}]}, "y of a point"),
        ({"prompts": [{"type": "wink"}]}, "point, box, brush"),
        ({"prompts": [{"type": "brush", "label": 2}]}, "label 1"),
        ({"prompts": [{"type": "brush", "label": 1, "path": [float("inf")]}]}, "JSON"),
    ],
)
def test_masks_that_can_not_be_are_refused(store, fields, message):
    with pytest.raises(ValueError, match=message):
        store.save_mask(mask(store.image(1), **fields))
    assert store.masks(1) == []


def test_a_mask_stays_on_its_image_and_keeps_its_origin(store):
    record = store.save_mask(mask(store.image(1)))
    for change in ({"picture_id": 2}, {"origin": "prefilled"}):
        with pytest.raises(ValueError, match="can't become"):
            store.save_mask(dataclasses.replace(record, **change))
    with pytest.raises(ValueError, match="no image 99"):
        store.save_mask(dataclasses.replace(record, picture_id=99))


def test_a_size_is_needed_for_masks_and_stays_once_there_are_some(tmp_path):
    store = Store(tmp_path)
    store.add_images(tmp_path, ["a.jpg"])
    with pytest.raises(ValueError, match="note the image's size first"):
        store.save_mask(mask(store.image(1)))
    store.set_size(1, WIDTH, HEIGHT)
    store.save_mask(mask(store.image(1)))
    store.set_size(1, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="replaced by another image"):
        store.set_size(1, 5, 5)


def test_an_open_image_comes_again_until_it_is_finished_skipped_or_released(store):
    assert [p.id for p in store.upcoming("ann", 9)] == [1, 2, 3, 4]
    assert store.claim("ann").id == store.claim("ann").id == 1
    assert store.claim("bea").id == 2
    assert [p.id for p in store.upcoming("ann", 2)] == [3, 4]
    store.finish(1, "ann", seconds=3)
    store.finish(1, "ann", seconds=3)  # a retry
    assert store.rows("SELECT seconds FROM pictures WHERE id = 1")[0][0] == 3
    assert store.claim("ann").id == 3
    store.finish(3, "ann", "skipped")
    store.finish(3, "ann", "skipped")
    assert store.claim("ann").id == 4  # not 3 again ...
    store.finish(2, "bea")
    assert store.claim("bea").id == 3  # ... which is for others
    assert [p.id for p in store.release(0, "bea")] == [3]
    assert store.claim("eve").id == 3
    assert store.claim("bea") is None
    with pytest.raises(ValueError, match="expected image 3 to be ann's, it is open and eve's"):
        store.finish(3, "ann")


def states(store, annotator):
    return [(image.id, image.state) for image in store.work_of(annotator)]


def test_looking_back_changes_nothing_and_taking_opens_again(store):
    store.finish(store.claim("ann").id, "ann", "done")
    store.finish(store.claim("ann").id, "ann", "skipped")
    assert store.claim("ann").id == 3
    for _ in range(2):
        assert states(store, "ann") == [(1, "done"), (2, "skipped"), (3, "open")]
    assert states(store, "bea") == []
    assert store.work_state(1) == ("done", "ann")
    for _ in range(2):
        store.take(1, "ann")
        assert states(store, "ann") == [(2, "skipped"), (3, "open"), (1, "open")]
    assert store.claim("ann").id == 1
    store.finish(1, "ann")
    store.take(2, "ann")
    assert states(store, "ann") == [(3, "open"), (1, "done"), (2, "open")]
    for image, state in ((3, "open"), (1, "done")):
        with pytest.raises(UserError, match=f"expected image {image} to be bea's, it is {state} and ann's"):
            store.take(image, "bea")
    store.finish(2, "ann", "skipped")
    store.finish(store.claim("bea").id, "bea")  # 2, which ann skipped
    assert states(store, "ann") == [(3, "open"), (1, "done")]


def test_a_project_has_a_list_of_classes(store):
    assert store.classes == []
    store.set_classes([" cat ", "dog"])
    assert Store(store.folder).classes == ["cat", "dog"]
    for wrong in (["cat", "cat"], [""], ["a\nb"], ["x" * 201], [7], "cat", [str(i) for i in range(201)]):
        with pytest.raises(UserError, match="class"):
            store.set_classes(wrong)
    assert store.classes == ["cat", "dog"]


def test_images_of_people_who_went_away_are_released_with_their_masks(store):
    store.claim("ann")
    store.claim("bea")
    assert store.release(1.0) == []
    with store.transaction() as db:
        db.execute("UPDATE pictures SET opened = '2026-01-01T00:00:00.000000+00:00'")
    record = store.save_mask(mask(store.image(2), annotator="bea"))  # bea is still there
    assert [p.id for p in store.release(1.0)] == [1]
    assert [p.id for p in store.images("free")] == [1, 3, 4]
    assert store.release(0, "ann") == []
    assert [p.id for p in store.release(0)] == [2]
    assert store.masks(2) == [record]
    with pytest.raises(ValueError, match="at least 0, got nan"):
        store.release(float("nan"))


def test_nobody_changes_masks_of_a_image_that_somebody_else_has_open(store):
    store.claim("ann")
    record = store.save_mask(mask(store.image(1)))
    with pytest.raises(ValueError, match="open and ann's"):
        store.save_mask(dataclasses.replace(record, annotator="bea"))
    with pytest.raises(ValueError, match="open and ann's"):
        store.delete_mask(record.id, "bea")


def proposal(image, seed=0, **fields):
    return mask(image, seed, annotator="model", origin="prefilled", state="proposed", **fields)


def test_prefilled_images_come_first_and_what_is_left_untouched_is_accepted(store):
    masks = [proposal(store.image(3), seed, rank=seed) for seed in range(3)]
    assert store.prefill(3, masks, "model 1")
    assert store.claim("ann").id == 3
    store.save_mask(dataclasses.replace(masks[0], state="rejected", annotator="ann"))
    store.save_mask(dataclasses.replace(masks[1], state="edited", annotator="ann", segmentation=rle(9)))
    store.finish(3, "ann")
    assert [(m.state, m.annotator) for m in store.masks(3)] == [
        ("rejected", "ann"),
        ("edited", "ann"),
        ("accepted", "ann"),
    ]
    assert [e["annotator"] for e in store.history(masks[2].id)] == ["model", "ann"]


def test_prefilling_again_replaces_proposals_but_not_what_people_touched(store):
    first, second = proposal(store.image(1)), proposal(store.image(1), 1)
    assert store.prefill(1, [first], "model 1")
    assert store.prefill(1, [second], "model 2")
    assert store.masks(1) == [second]
    assert store.history(first.id)[-1]["action"] == "delete"
    assert [p.id for p in store.to_prefill("model 2")] == [2, 3, 4]
    store.claim("ann")
    assert not store.prefill(1, [proposal(store.image(1), 2)], "model 3")
    assert store.masks(1) == [second]
    assert [p.id for p in store.to_prefill("model 3")] == [2, 3, 4]
    store.save_mask(mask(store.image(2)))
    assert not store.prefill(2, [proposal(store.image(2))], "model 3")
    with pytest.raises(ValueError, match="prefilled and proposed"):
        store.prefill(3, [mask(store.image(3))], "model 3")


def test_held_out_images_are_a_share_that_adding_again_keeps(tmp_path):
    store, names = Store(tmp_path), [f"{n}.jpg" for n in range(40)]
    assert store.add_images(tmp_path, names, held_out=0.2) == 40
    splits = {p.name: p.split for p in store.images()}
    assert list(splits.values()).count("held_out") == 8
    assert store.add_images(tmp_path, [*names, "more.jpg"], held_out=0.2) == 1
    assert {p.name: p.split for p in store.images() if p.name != "more.jpg"} == splits
    held = next(p for p in store.images() if p.split == "held_out")
    store.set_size(held.id, WIDTH, HEIGHT)
    assert not store.prefill(held.id, [proposal(held)], "model 1")
    assert held not in store.to_prefill("x")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "a/../../b.jpg", "", "a\\b.jpg", "a\0.jpg"])
def test_no_name_leads_out_of_the_folder(store, name):
    with pytest.raises(ValueError, match="below the folder"):
        store.add_images(Path("photos"), [name])


def test_stages_are_kept_and_changes_are_events(store):
    assert store.stage == "assisted-manual"
    store.set_stage("semi-automatic")
    store.set_stage("semi-automatic")
    assert Store(store.folder).stage == "semi-automatic"
    (event,) = read_events(store, "stage")
    assert (event["from"], event["to"]) == ("assisted-manual", "semi-automatic")
    assert event["at"].endswith("+00:00")
    with pytest.raises(ValueError, match="assisted-manual, semi-automatic, automatic"):
        store.set_stage("lunch")


def test_other_files_and_newer_stores_are_refused(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="engine init"):
        Store(tmp_path / "nothing", create=False)
    with store.transaction() as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(ValueError, match="version 2, this sam_jax knows version 1"):
        Store(store.folder)
    for name, content in (("text", b"hello" * 1000), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "engine.sqlite").write_bytes(content)
        with pytest.raises(ValueError, match="expected a store"):
            Store(tmp_path / name)


def test_what_was_saved_is_on_disk(store):
    assert store.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert store.rows("PRAGMA synchronous")[0][0] == 2  # FULL
    assert store.rows("PRAGMA foreign_keys")[0][0] == 1


def test_the_next_free_image_is_found_without_reading_all(store):
    with store.transaction() as db:
        plan = db.execute(
            "EXPLAIN QUERY PLAN SELECT pictures.id FROM pictures JOIN roots ON roots.id = root_id WHERE state = 'free' "
            "ORDER BY prefilled IS NULL, pictures.id LIMIT 1"
        ).fetchall()
    assert any("free_pictures" in row["detail"] for row in plan)
    assert not any("TEMP B-TREE" in row["detail"] for row in plan)
