"""`sam-jax prepare`: what is written reads back as it was, is whole or not there, and bad records are counted."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cases.data import check, coco_json, encoded, make_image, sa1b_files, write_files, write_images, write_tar
from sam_jax.commands import main as cli
from sam_jax.config import DataConfig
from sam_jax.data.prepare import prepare
from sam_jax.data.prepared import PreparedSource
from sam_jax.data.sources import open_source


def numbers_of(source) -> list[int]:
    return sorted(int(source[i].name.rpartition("/")[2].removeprefix("sa_")) for i in range(len(source)))


def check_all(path, expected: list[int], split="train") -> PreparedSource:
    source = PreparedSource(path, split)
    assert numbers_of(source) == expected
    for i in range(len(source)):
        check(source[i], int(source[i].name.rpartition("/")[2].removeprefix("sa_")))
    return source


@pytest.fixture
def tars(tmp_path):
    write_tar(tmp_path / "tars" / "sa_000000.tar", sa1b_files(range(3)), "./")
    write_tar(tmp_path / "tars" / "sa_000001.tar", sa1b_files(range(3, 5)))
    return tmp_path / "tars"


def test_sa_1b_goes_through_beam_to_array_record_and_back(tars, tmp_path, capsys):
    assert cli.main(["prepare", str(tars), "--out", str(tmp_path / "out")]) == 0
    assert "5 images with 10 masks" in capsys.readouterr().out
    path = tmp_path / "out" / "sam_sa1b" / "1.0.0"
    assert len(list(path.glob("*array_record*"))) == 2
    source = check_all(path, [0, 1, 2, 3, 4])
    assert {source[i].encoded for i in range(5)} == {
        data for name, data in sa1b_files(range(5)).items() if name.endswith("jpg")
    }
    check_all(path, [0, 1, 2, 3, 4])
    assert numbers_of(pickle.loads(pickle.dumps(source))) == [0, 1, 2, 3, 4]
    train, validation = open_source(DataConfig(tmp_path / "out"))
    assert sorted(numbers_of(train) + numbers_of(validation)) == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".prepare.lock"]


@pytest.mark.slow
def test_worker_processes_say_nothing_of_themselves(tars, tmp_path):
    (tars / "engine.settings.json").touch()  # of a run that has not come to its end
    command = [sys.executable, "-m", "sam_jax", "prepare", str(tars), "--out", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    check_all(tmp_path / "out" / "sam_sa1b" / "1.0.0", [0, 1, 2, 3, 4])
    told = [line for line in done.stderr.splitlines() if "/2 [" not in line]  # the progress bar
    assert told == [f"sam-jax: `sam-jax engine run` has not finished {tars}; only what is there is read"]


def test_records_hold_areas_and_boxes(tmp_path):
    write_images(tmp_path / "in", range(1))
    (tmp_path / "in" / "annotations.json").write_text(json.dumps(coco_json(range(1))))
    path = prepare(tmp_path / "in", tmp_path / "out").path
    import tensorflow_datasets as tfds

    (record,) = tfds.builder_from_directory(path).as_data_source("train")
    mask = make_image(0)[1][0]
    assert record["masks"]["area"][0] == mask.sum()
    assert record["masks"]["box"][0].tolist() == [10, 4, 30, 10]
    assert record["size"].tolist() == list(mask.shape)
    assert record["image"].shape == (*mask.shape, 3)


def test_coco_label_maps_and_masks_are_prepared_alike(tmp_path):
    for part, numbers in (("train2017", range(3)), ("val2017", range(3, 5))):
        write_images(tmp_path / "coco" / part, numbers)
        content = json.dumps(coco_json(numbers)).encode()
        write_files(tmp_path / "coco", {f"annotations/instances_{part}.json": content})
    result = prepare(tmp_path / "coco", tmp_path / "out")
    assert (result.path.parent.name, result.images, result.masks) == ("sam_coco", 5, 10)
    check_all(result.path, [0, 1, 2])
    check_all(result.path, [3, 4], "validation")

    for kind in ("labels", "masks"):
        write_images(tmp_path / kind / "images", range(2))
        for number in range(2):
            rectangle, ellipse = make_image(number)[1]
            path = tmp_path / kind / kind / str(number)
            if kind == "labels":
                path.parent.mkdir(exist_ok=True)
                Image.fromarray((rectangle + 2 * ellipse).astype(np.uint8)).save(f"{path}.png")
            else:
                path.mkdir(parents=True)
                Image.fromarray(rectangle).save(path / "a.png")
                Image.fromarray(ellipse).save(path / "b.png")
        check_all(prepare(tmp_path / kind, tmp_path / "out").path, [0, 1])


def test_images_that_are_neither_jpeg_nor_png_become_png(tmp_path):
    image, _ = make_image(0)
    files = sa1b_files(range(1))
    del files["sa_0.jpg"]
    write_files(tmp_path / "in", {**files, "sa_0.bmp": encoded(image, "BMP")})
    path = prepare(tmp_path / "in", tmp_path / "out").path
    example = PreparedSource(path, "train")[0]
    assert example.encoded.startswith(b"\x89PNG")
    np.testing.assert_array_equal(example.image(), image)


def test_bad_records_are_left_out_counted_and_listed(tars, tmp_path, capsys):
    files = sa1b_files(range(5, 9))
    files["sa_5.jpg"] = files["sa_5.jpg"][:300]
    files["sa_6.json"] = b"{"
    files["sa_7.json"] = json.dumps({"image": {"height": 80, "width": 80}, "annotations": []}).encode()
    path = write_tar(tars / "sa_000002.tar", files)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(files["sa_8.jpg"]) + 100])
    assert cli.main(["prepare", str(tars), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "5 images with 10 masks" in printed
    assert "1 left out (no masks)" in printed
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in lines]
    assert sorted(reasons) == ["JSON cannot be read", "image cannot be decoded", "no masks", "tar cut off"]
    assert all("sa_000002.tar" in line["where"] for line in lines)
    check_all(tmp_path / "out" / "sam_sa1b" / "1.0.0", [0, 1, 2, 3, 4])


def test_masks_that_cannot_be_read_are_listed_and_do_not_count_as_records(tmp_path, capsys):
    files = sa1b_files(range(12))
    for number in range(12):
        content = json.loads(files[f"sa_{number}.json"])
        content["annotations"].append({"segmentation": {"size": [1, 1], "counts": "1"}})
        files[f"sa_{number}.json"] = json.dumps(content).encode()
    write_tar(tmp_path / "in" / "sa_000000.tar", files)
    assert cli.main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    assert "12 left out (masks of another size)" in capsys.readouterr().out
    assert len((tmp_path / "out" / "bad_records.jsonl").read_text().splitlines()) == 12
    check_all(tmp_path / "out" / "sam_sa1b" / "1.0.0", [*range(12)])


@pytest.mark.parametrize("format", ["sa1b", "coco"])
def test_too_many_bad_records_are_an_error_and_leave_nothing_that_looks_finished(tmp_path, format, capsys):
    files = sa1b_files(range(14))
    if format == "sa1b":
        broken = {name: data if name.endswith("json") else b"broken" for name, data in files.items()}
        write_files(tmp_path / "in", {**broken, "sa_0.jpg": files["sa_0.jpg"]})
    else:
        write_files(tmp_path / "in", {f"{i}.jpg": files["sa_0.jpg"] if i == 0 else b"broken" for i in range(14)})
        (tmp_path / "in" / "annotations.json").write_text(json.dumps(coco_json(range(14))))
    assert cli.main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "records cannot be used (image cannot be decoded: 11)" in capsys.readouterr().err
    assert (tmp_path / "out" / "bad_records.jsonl").exists()
    assert not list((tmp_path / "out").glob("sam_*"))
    with pytest.raises(ValueError, match="looked for"):
        open_source(DataConfig(tmp_path / "out"))


def test_a_preparation_killed_before_it_has_cleaned_up_is_finished(tars, tmp_path, monkeypatch):
    from sam_jax.data import prepare as module

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_clean_up", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tars, tmp_path / "out")
    partial, other = tmp_path / "out" / ".partial_sam_sa1b", tmp_path / "other"
    shutil.copytree(tars, other)
    with pytest.raises(FileExistsError, match="there already"):
        prepare(other, tmp_path / "out")
    result = prepare(tars, tmp_path / "out")
    assert not partial.exists()
    check_all(result.path, list(range(result.images)))
    assert result.masks == 2 * result.images
    with pytest.raises(FileExistsError, match="there already"):
        prepare(tars, tmp_path / "out")
    partial.mkdir()  # killed before its last step: nothing of it stays
    with pytest.raises(FileExistsError, match="there already"):
        prepare(tars, tmp_path / "out")
    assert not partial.exists()


def test_a_stopped_preparation_goes_on_and_a_changed_source_is_read_again(tars, tmp_path, monkeypatch):
    from sam_jax.data import prepare as module

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tars, tmp_path / "out")
    shards = tmp_path / "out" / ".partial_sam_sa1b" / "shards"
    before = {path.name: path.stat().st_ino for path in shards.glob("*.array_record")}
    write_tar(tars / "sa_000001.tar", sa1b_files(range(3, 7)))
    result = prepare(tars, tmp_path / "out")
    check_all(result.path, [0, 1, 2, 3, 4, 5, 6])
    after = [path.stat().st_ino for path in sorted(result.path.glob("*array_record-*"))]
    assert before["000000.array_record"] == after[0]
    assert before["000001.array_record"] != after[1]
    with pytest.raises(FileExistsError, match="there already"):
        prepare(tars, tmp_path / "out")
    with pytest.raises(ValueError, match="prepared already"):
        prepare(tmp_path / "out", tmp_path / "again")
