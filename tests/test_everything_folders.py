"""`sam-jax everything`: what it writes is whole and readable, it goes on where it was, and mistakes are named."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cases.everything import make_image as discs
from cases.models import TRAINED
from sam_jax import read_image
from sam_jax.commands import main as cli
from sam_jax.data.images import ImageFile, find_images
from sam_jax.everything.formats import FORMATS
from sam_jax.ops.draw import draw_everything
from sam_jax.ops.rle import decode_rle, encode_rle

MODEL = ["--model", str(TRAINED)]
OPTIONS = [*MODEL, "--preset", "official", "--points-per-side", "4"]
OPTIONS += ["--pred-iou-thresh", "0.05", "--stability-score-thresh", "0.1"]


def run(*arguments: object) -> int:
    return cli.main(["everything", *map(str, arguments), *OPTIONS])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, width in (("sa_7.jpg", 220), ("b.png", 180), ("deeper/b.PNG", 150)):
        Image.fromarray(discs()[:, :width]).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def files_in(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix() for path in files}


def test_sa_1b_files_lie_as_the_images_do(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, "--out", out) == 0
    assert files_in(out) == {"everything.settings.json", "sa_7.json", "b.json", "deeper/b.json"}
    content = json.loads((out / "sa_7.json").read_text())
    assert content["image"] == {"image_id": 7, "file_name": "sa_7.jpg", "width": 220, "height": 150}
    assert content["annotations"]
    for i, record in enumerate(content["annotations"]):
        assert record["id"] == i
        mask = decode_rle(record["segmentation"])
        assert mask.shape == (150, 220)
        assert mask.sum() == record["area"]
        assert all(isinstance(number, float) for number in record["bbox"] + record["crop_box"])
    ids = {json.loads((out / name).read_text())["image"]["image_id"] for name in ("b.json", "deeper/b.json")}
    assert len(ids) == 2
    assert "3 images" in capsys.readouterr().out


def test_the_coco_file_is_read_by_pycocotools(photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--format", "coco") == 0
    coco = COCO(out / "instances.json")
    images = {image["file_name"]: image for image in coco.dataset["images"]}
    assert set(images) == {"sa_7.jpg", "b.png", "deeper/b.PNG"}
    assert len(set(coco.anns)) == len(coco.dataset["annotations"]) > 5
    for image in images.values():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]], catIds=[1]))
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert mask.shape == (image["height"], image["width"])
            assert mask.sum() == annotation["area"]
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_png_folders_hold_the_masks_and_the_official_table(photos, tmp_path):
    sa1b, png = tmp_path / "sa1b", tmp_path / "png"
    assert run(photos / "b.png", "--out", sa1b) == 0
    assert run(photos / "b.png", "--out", png, "--format", "png") == 0
    records = json.loads((sa1b / "b.json").read_text())["annotations"]
    with (png / "b.masks" / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["area"]) for row in rows] == [record["area"] for record in records]
    for i, (row, record) in enumerate(zip(rows, records, strict=True)):
        mask = np.asarray(Image.open(png / "b.masks" / f"{i}.png"))
        np.testing.assert_array_equal(mask == 255, decode_rle(record["segmentation"]))
        assert float(row["point_input_x"]) == record["point_coords"][0][0]
        assert float(row["crop_box_w"]) == 180


def test_an_overlay_colours_what_the_masks_cover_and_nothing_else(photos, tmp_path):
    sa1b, out = tmp_path / "sa1b", tmp_path / "out"
    assert run(photos / "b.png", "--out", sa1b) == 0
    assert run(photos / "b.png", "--out", out, "--format", "overlay") == 0
    drawn, image = read_image(out / "b.png").astype(int), read_image(photos / "b.png").astype(int)
    records = json.loads((sa1b / "b.json").read_text())["annotations"]
    covered = np.any([decode_rle(record["segmentation"]) for record in records], 0)
    changed = np.abs(drawn - image).max(-1) > 12
    assert changed[covered].mean() > 0.95
    near = np.pad(covered, 2)
    near = np.any([np.roll(near, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], 0)[2:-2, 2:-2]
    assert not changed[~near].any()


def test_a_small_mask_is_drawn_over_the_large_one_that_holds_it():
    image = np.zeros((40, 40, 3), np.uint8)
    large, small = np.zeros((2, 40, 40), bool)
    large[2:38, 2:38] = small[15:25, 15:25] = True
    drawn = draw_everything(image, [encode_rle(small), encode_rle(large)])
    assert (drawn[20, 20] != drawn[8, 8]).any()
    np.testing.assert_array_equal(draw_everything(image, []), image)


def test_finished_images_are_not_done_again_and_new_ones_are(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--format", "coco") == 0
    part = out / "parts" / "b.json"
    before = part.stat().st_mtime_ns
    Image.fromarray(discs()).save(photos / "new.jpg")
    left = out / "parts" / ".new.json.1.tmp"  # by a killed run
    left.write_text('{"half')
    assert run(photos, "--out", out, "--format", "coco") == 0
    assert "1 images, 3 were there" in capsys.readouterr().out
    assert part.stat().st_mtime_ns == before
    assert len(COCO(out / "instances.json").imgs) == 4
    assert [name for name in files_in(out) if "tmp" in name] == ["parts/.new.json.1.tmp"]


def test_a_killed_run_leaves_whole_files_and_is_finished_by_the_next(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(60):
        Image.fromarray(np.roll(discs(), i, 1)).save(folder / f"{i:02}.jpg")
    command = [sys.executable, "-m", "sam_jax", "everything", str(folder), "--out", str(out), *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob("[0-9]*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = sorted(out.glob("[0-9]*.json"))
    assert 3 <= len(finished) < 60
    assert all(json.loads(path.read_text())["annotations"] is not None for path in finished)
    times = [path.stat().st_mtime_ns for path in finished]
    assert run(folder, "--out", out) == 0
    assert len(list(out.glob("[0-9]*.json"))) == 60
    assert [path.stat().st_mtime_ns for path in finished] == times


def test_bad_images_are_reported_at_the_end_and_stop_nothing(photos, tmp_path, capsys):
    (photos / "a_cut.jpg").write_bytes((photos / "sa_7.jpg").read_bytes()[:1000])
    (photos / "text.png").write_text("no image")
    Image.fromarray(discs()[:1, :1]).save(photos / "one_pixel.png")
    out = tmp_path / "out"
    assert run(photos, "--out", out, "--crop-n-layers", 1) == 1
    errors = capsys.readouterr().err
    assert {"sa_7.json", "b.json", "deeper/b.json"} <= files_in(out)
    assert not {"a_cut.json", "text.json", "one_pixel.json"} & files_in(out)
    for name, reason in (
        ("a_cut.jpg", "image file is truncated"),
        ("text.png", "image cannot be decoded"),
        ("one_pixel.png", "too small"),
    ):
        assert any(name in line and reason in line for line in errors.splitlines()), (name, errors)


def test_an_image_without_masks_has_a_valid_result_and_what_was_dropped_is_said(photos, tmp_path, capsys):
    out = tmp_path / "out"
    for format in FORMATS:
        command = ["everything", photos / "b.png", "--out", out / format, "--format", format, *OPTIONS]
        assert cli.main([*map(str, command), "--points-per-side", "2", "--pred-iou-thresh", "1"]) == 0
        written = capsys.readouterr().out
        assert "1 images are without masks: of 12 predicted masks 12 have a predicted IoU of at most 1; --" in written
    assert json.loads((out / "sa1b" / "b.json").read_text())["annotations"] == []
    assert COCO(out / "coco" / "instances.json").getAnnIds() == []
    assert (out / "png" / "b.masks" / "metadata.csv").read_text().count("\n") == 1
    np.testing.assert_array_equal(read_image(out / "overlay" / "b.png"), read_image(photos / "b.png"))


def test_results_of_other_settings_are_not_mixed(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos / "b.png", "--out", out) == 0
    assert run(photos / "b.png", "--out", out, "--min-mask-region-area", 5) == 2
    assert "min_mask_region_area 0 -> 5" in capsys.readouterr().err
    assert run(photos / "b.png", "--out", out, "--format", "coco") == 2
    assert "format 'sa1b' -> 'coco'" in capsys.readouterr().err


def test_a_disk_that_fills_is_named_and_what_was_finished_stays(photos, tmp_path, capsys, monkeypatch):
    out, write = tmp_path / "out", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".sa_7.json."):
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(photos, "--out", out) == 2
    message = capsys.readouterr().err
    assert "sa_7.json: No space left on device" in message
    assert "the same command goes on" in message
    assert "b.json" in files_in(out)
    assert not [name for name in files_in(out) if "sa_7" in name]
    monkeypatch.undo()
    assert run(photos, "--out", out) == 0
    assert "sa_7.json" in files_in(out)


def test_an_output_folder_that_can_t_be_written_is_named(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(photos, "--out", tmp_path / "file" / "out") == 2
    assert "can't be written" in capsys.readouterr().err


def test_inputs_that_are_no_images_or_would_share_a_result_are_named(photos, tmp_path, capsys):
    assert run(tmp_path / "nothing", "--out", tmp_path / "out") == 2
    assert "no image or folder at" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--out", tmp_path / "out") == 2
    assert "no images in" in capsys.readouterr().err
    Image.fromarray(discs()).save(photos / "b.jpg")
    assert run(photos, "--out", tmp_path / "out") == 2
    assert "same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_below_the_input_are_no_images_to_segment(photos):
    out = photos / "results"
    out.mkdir()
    Image.fromarray(discs()).save(out / "c.png")
    names = [str(make_image.name) for make_image in find_images([photos], out)]
    assert names == ["b.png", "deeper/b.PNG", "sa_7.jpg"]
    assert find_images([photos / "b.png", photos / "b.png"], out) == [ImageFile(photos / "b.png", Path("b.png"))]
