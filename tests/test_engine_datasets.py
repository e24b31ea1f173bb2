"""Dataset versions: they are complete, never change, can be trained on, and contain no held-out images."""

import dataclasses
import hashlib
import json
import os
import subprocess
import tarfile
import uuid
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sam_jax.commands import main as cli
from sam_jax.config import DataConfig
from sam_jax.data.sources import open_source
from sam_jax.engine.datasets import freeze, list_versions, version_folder
from sam_jax.engine.records import MaskRecord
from sam_jax.engine.store import Store
from sam_jax.everything.formats import FORMATS
from sam_jax.ops.rle import decode_rle, encode_rle

HEIGHT, WIDTH = 24, 32


def mask_record(stored, seed=0, **fields):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2 + seed : 12 + seed, 3 : 20 + seed] = True
    fields = {"annotator": "ann", "segmentation": encode_rle(mask)} | fields
    return MaskRecord(id=uuid.uuid4().hex, picture_id=stored.id, **fields)


def annotate(store, count, masks=2):
    for _ in range(count):
        stored = store.claim("ann")
        store.set_size(stored.id, WIDTH, HEIGHT)
        for seed in range(masks):
            store.save_mask(mask_record(stored, seed, prompts=[{"type": "point", "x": 5, "y": 6, "label": 1}]))
        store.finish(stored.id, "ann")


def write_images(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(start, start + count):
        pixels = np.random.default_rng(n).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.jpg")
    return [f"{n}.jpg" for n in range(start, start + count)]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "project")
    store.add_images(tmp_path / "photos", write_images(tmp_path / "photos", 10), held_out=0.2)
    return store


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_version_is_read_as_sa1b_with_the_masks_that_were_saved(store):
    annotate(store, 10)
    version = freeze(store)
    assert (version.number, version.pictures, version.masks, version.stage) == (1, 8, 16, "assisted-manual")
    folder = version_folder(store, "train", 1)
    train, validation = open_source(DataConfig(path=folder))
    assert (len(train), len(validation)) == (7, 1)
    example = validation[0]
    stored = store.image(int(example.path.stem.removeprefix("sa_")))
    assert example.read() == stored.path.read_bytes()
    assert list(example.masks) == [m.segmentation for m in store.masks(stored.id)]
    assert decode_rle(example.masks[0]).shape == example.image().shape[:2]
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    (annotation, _) = json.loads(example.path.with_suffix(".json").read_text())["annotations"]
    assert (annotation["bbox"], annotation["point_coords"], annotation["area"]) == ([3, 2, 16, 9], [[5, 6]], 170)


def test_held_out_images_are_in_no_training_version_under_any_name(store, tmp_path):
    held_out = [p for p in store.images() if p.split == "held_out"]
    copy = tmp_path / "photos" / "copy.jpg"
    copy.write_bytes(held_out[0].path.read_bytes())
    store.add_images(tmp_path / "photos", ["copy.jpg"])
    annotate(store, 11)
    contents = {hashlib.sha256(p.path.read_bytes()).hexdigest() for p in held_out}
    for split, count in (("train", 8), ("held_out", 2)):
        version = freeze(store, split)
        pictures = list(version_folder(store, split, 1).rglob("*.jpg"))
        found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}
        assert len(pictures) == version.pictures == count
        assert found & contents == (contents if split == "held_out" else set())


def test_a_version_is_not_changed_by_later_work_and_nothing_new_makes_no_version(store):
    annotate(store, 5)
    first = freeze(store)
    folder = version_folder(store, "train", 1)
    before = files_of(folder)
    assert freeze(store) == first
    annotate(store, 5)
    second = freeze(store)
    assert second.number == 2
    assert second.pictures > first.pictures
    assert files_of(folder) == before
    assert list_versions(store) == [first, second]
    shared = next(path for path in sorted(before) if path.endswith(".jpg"))
    assert os.path.samefile(folder / shared, version_folder(store, "train", 2) / shared)
    assert {p.name for p in folder.parent.iterdir()} == {"0001", "0002", ".lock"}


def test_rejected_and_deleted_masks_and_open_images_stay_out(store):
    stored = store.claim("ann")
    store.set_size(stored.id, WIDTH, HEIGHT)
    proposals = [mask_record(stored, n, origin="prefilled", state="proposed", annotator="model") for n in range(3)]
    for proposal in proposals:
        store.save_mask(dataclasses.replace(proposal, annotator="ann"))
    store.save_mask(dataclasses.replace(proposals[0], state="rejected", annotator="ann"))
    store.delete_mask(proposals[1].id, "ann")
    with pytest.raises(ValueError, match="annotate some first"):
        freeze(store, stored.split)
    store.finish(stored.id, "ann")
    store.claim("ann")
    version = freeze(store, stored.split)
    assert (version.pictures, version.masks, version.origins) == (1, 1, {"prefilled": 1})


def test_a_stopped_freeze_leaves_no_version_and_the_next_one_cleans_up(store, monkeypatch):
    annotate(store, 10)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            freeze(store)
    assert list_versions(store) == []
    (store.folder / "datasets" / ".new").mkdir()
    (store.folder / "datasets" / ".new" / "half").write_text("x")
    assert freeze(store).number == 1
    assert not (store.folder / "datasets" / ".new").exists()


def sa1b_json(number, masks=1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1:9, 2:9] = True
    annotation = {"id": 1, "segmentation": encode_rle(mask), "predicted_iou": 0.9, "stability_score": 0.95}
    image = {"image_id": number, "file_name": f"sa_{number}.jpg", "height": HEIGHT, "width": WIDTH}
    return json.dumps({"image": image, "annotations": [annotation] * masks})


@pytest.mark.parametrize("format", FORMATS)
def test_a_project_is_exported_in_every_format_with_the_masks_of_automatic_runs(store, tmp_path, capsys, format):
    annotate(store, 3)
    automatic, out = tmp_path / "automatic", tmp_path / "out"
    write_images(automatic, 1)
    (automatic / "0.json").write_text(sa1b_json(5))
    command = ["engine", "export", str(store.folder), "--format", format]
    assert cli.main([*command, "--automatic", str(automatic), "--out", str(out)]) == 0
    assert "7 masks of 4 images" in capsys.readouterr().out
    form = FORMATS[format]
    names = [*(stored.name for stored in store.images("done")), "automatic/sa_5.jpg"]
    if format == "coco":
        coco = COCO(out / "instances.json")
        assert [image["file_name"] for image in coco.dataset["images"]] == [*names[:3], "sa_5.jpg"]
        assert len(coco.anns) == 7
        assert [path.name for path in out.iterdir()] == ["instances.json"]
    else:
        assert all(form.target(out, PurePosixPath(name)).exists() for name in names)
    assert cli.main([*command, "--out", str(out)]) == 2
    assert "expected a new folder" in capsys.readouterr().err


def test_images_of_one_name_have_results_of_their_own_and_a_project_without_masks_has_none(store, tmp_path, capsys):
    command = ["engine", "export", str(store.folder), "--format", "sa1b", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "found none; annotate some first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    store.add_images(tmp_path / "more", write_images(tmp_path / "more", 1))
    annotate(store, 11, masks=1)
    assert cli.main(command) == 0
    contents = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("0*.json")]
    assert sorted(content["image"]["image_id"] for content in contents) == [1, 11]
    assert {content["image"]["file_name"] for content in contents} == {"0.jpg"}
    assert contents[0]["annotations"][0]["bbox"] == [3, 2, 16, 9]


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_automatic_masks_go_in_but_not_on_images_that_people_finished_or_that_are_held_out(store, tmp_path, kind):
    annotate(store, 3)
    automatic = tmp_path / "automatic"
    automatic.mkdir()
    members = {}
    for stored in store.images():
        members |= {
            f"sa_{stored.id}.jpg": stored.path.read_bytes(),
            f"sa_{stored.id}.json": sa1b_json(stored.id).encode(),
        }
    for name, content in members.items():
        (automatic / name).write_bytes(content)
    if kind == "tar":
        with tarfile.open(automatic / "sa_000000.tar", "w") as tar:
            for name in members:
                tar.add(automatic / name, name)
                (automatic / name).unlink()
    version = freeze(store, automatic=[automatic])
    done = [p for p in store.images("done") if p.split == "train"]
    assert version.origins == {"manual": 2 * len(done), "automatic": 8 - len(done)}
    assert version.pictures == 8
    assert len(open_source(DataConfig(path=version_folder(store, "train", 1)))[0]) == 7
    with pytest.raises(ValueError, match="people's masks alone"):
        freeze(store, "held_out", [automatic])


def test_automatic_images_that_were_written_anew_are_known_by_the_list_of_the_run(store, tmp_path):
    annotate(store, 3)
    automatic = tmp_path / "automatic"
    automatic.mkdir()
    rows = []
    for stored in store.images():
        with Image.open(stored.path) as image:
            image.save(automatic / f"sa_{stored.id}.jpg", quality=50)
        (automatic / f"sa_{stored.id}.json").write_text(sa1b_json(stored.id))
        rows.append(json.dumps({"id": stored.id, "name": stored.name, "url": str(stored.path)}))
    (automatic / "pictures.jsonl").write_text("\n".join(rows))
    version = freeze(store, automatic=[automatic])
    assert version.pictures == 8


def test_a_image_that_is_gone_is_told_of(store):
    annotate(store, 3)
    store.images("done")[0].path.unlink()
    with pytest.raises(FileNotFoundError, match="put it back"):
        freeze(store)
