"""`sam-jax engine run`: everything mode writes tars like SA-1B's, with the same bytes however often it is killed."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from apache_beam.runners.portability import local_job_service
from PIL import Image

from cases.everything import make_image as discs
from cases.models import TRAINED
from sam_jax.commands import main as cli
from sam_jax.config import DataConfig
from sam_jax.data.sources import open_source
from sam_jax.engine.automatic.folder import Folder
from sam_jax.engine.automatic.inputs import find_images
from sam_jax.engine.automatic.parts import join_files
from sam_jax.everything.generator import SamAutomaticMaskGenerator
from sam_jax.parallel.start import find_process

MODEL = ["--model", str(TRAINED)]
OPTIONS = ["--preset", "official", "--points-per-side", "3", "--pred-iou-thresh", "0.05"]
OPTIONS += ["--stability-score-thresh", "0.1"]
COUNT = 9


def run(*arguments: object) -> int:
    model = [] if "--model" in arguments else MODEL
    return cli.main(["engine", "run", *map(str, arguments), *model, *OPTIONS])


def encode(image: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def photos() -> dict[str, bytes]:
    """Writes PNG and JPEG images of several sizes, some in a subfolder; their names sort in another order."""
    files = {}
    for i in range(COUNT):
        image = np.roll(discs(), 9 * i, 1)[:, : 220 - 8 * i]
        name = f"{'deeper/' if i % 3 == 0 else ''}{COUNT - i}.{'png' if i % 2 else 'jpg'}"
        files[name] = encode(image, "PNG" if i % 2 else "JPEG")
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def in_tars(files: dict[str, bytes]) -> dict[str, bytes]:
    members = {}
    for name, data in files.items():
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    assert member.name not in members
                    members[member.name] = tar.extractfile(member).read()
    return members


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos"), photos())


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Returns the output of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(folder, "--out", out, "--shards", 2) == 0
    return out


def test_the_tars_hold_what_everything_mode_finds_in_sa_1b_s_form(folder, whole, tmp_path):
    assert cli.main(["everything", str(folder), "--out", str(tmp_path), *MODEL, *OPTIONS]) == 0
    files, names = in_tars(tree(whole)), sorted(photos())
    assert len(files) == 2 * COUNT
    ids = []
    for number, name in enumerate(names):
        content = json.loads(files[f"sa_{number}.json"])
        expected = json.loads((tmp_path / name).with_suffix(".json").read_text())
        listed = Image.open(io.BytesIO(files[f"sa_{number}.jpg"]))
        assert listed.format == "JPEG"
        size = {"width": listed.width, "height": listed.height}
        assert content["image"] == {"image_id": number, "file_name": f"sa_{number}.jpg", **size}
        assert content["annotations"]
        for found, record in zip(content["annotations"], expected["annotations"], strict=True):
            ids.append(found["id"])
            assert found | {"id": record["id"]} == record
            kinds = {"id": int, "area": int, "predicted_iou": float, "stability_score": float, "segmentation": dict}
            assert set(found) == {*kinds, "bbox", "crop_box", "point_coords"}
            assert all(isinstance(found[name], kind) for name, kind in kinds.items())
            numbers = found["bbox"] + found["crop_box"] + found["point_coords"][0]
            assert len(numbers) == 10
            assert all(isinstance(number, float) for number in numbers)
        if name.endswith("jpg"):
            assert files[f"sa_{number}.jpg"] == photos()[name]
    assert len(set(ids)) == len(ids)
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["pictures"], manifest["masks"], manifest["bad"]) == (COUNT, len(ids), [])
    assert [shard["pictures"] for shard in manifest["shards"]] == [4, 5]
    assert not (whole / ".work").exists()


def test_a_job_server_gives_the_same_bytes(folder, whole, tmp_path):
    """Runs as on clusters (Flink, Spark): the pipeline goes to a server as a message, which calls workers back."""
    server = local_job_service.LocalJobServicer(str(tmp_path / "staged"))
    port = server.start_grpc_server(0)
    try:
        beam_options = f"--job_endpoint=localhost:{port} --environment_type=LOOPBACK"
        portable = ["--shards", 2, "--runner", "PortableRunner", f"--beam-options={beam_options}"]
        assert run(folder, "--out", tmp_path / "out", *portable) == 0
    finally:
        server.stop()
    assert tree(tmp_path / "out") == tree(whole)


def test_training_reads_the_tars_and_prepare_the_same_from_them(whole, tmp_path):
    assert cli.main(["prepare", str(whole), "--out", str(tmp_path / "prepared")]) == 0
    sources = [open_source(DataConfig(path))[0] for path in (whole, tmp_path / "prepared")]
    assert len(sources[0]) == len(sources[1]) == COUNT - 1  # one is held out
    for i in range(len(sources[0])):
        tar, prepared = (source[i] for source in sources)
        assert tar.name == prepared.name
        assert tar.masks == prepared.masks
        np.testing.assert_array_equal(tar.image(), prepared.image())


@pytest.mark.slow
def test_train_py_trains_on_the_tars(whole, tmp_path):
    small = "--model.encoder.image-size 64 --model.encoder.dim 32 --model.encoder.depth 2 --model.encoder.heads 2"
    small += " --model.encoder.global-attention-blocks 1 --loss.size 64 --data.masks-per-image 4"
    small += " --steps 2 --data.batch-size 2 --data.workers 0 --prompts.point-rounds 1 --prompts.refine-rounds 0"
    small += " --parallel.data 1"
    command = [sys.executable, "train.py", "configs/vit_b.py", "--data.path", whole, "--out", tmp_path, *small.split()]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    assert (tmp_path / "model.safetensors").exists()


def test_an_array_record_data_set_is_made_beside_the_tars_once(folder, whole, tmp_path, capsys):
    out = write(tmp_path / "out", tree(whole))
    for _ in range(2):
        assert run(folder, "--out", out, "--shards", 2, "--format", "both") == 0
    assert capsys.readouterr().out.count("sam_sa1b/1.0.0") == 1
    train, validation = open_source(DataConfig(out))
    assert len(train) + len(validation) == COUNT
    assert train[0].encoded  # of ArrayRecord, and not of a tar


def test_reading_what_is_not_finished_says_so(whole, tmp_path, caplog):
    out = write(tmp_path / "out", {name: data for name, data in tree(whole).items() if name != "manifest.json"})
    open_source(DataConfig(out))
    assert caplog.text.count("has not finished") == 1
    caplog.clear()
    open_source(DataConfig(whole))
    assert not caplog.text


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    many = {f"{i:02}.jpg": encode(np.roll(discs(), i, 1), "JPEG") for i in range(48)}
    folder, out = write(tmp_path / "photos", many), tmp_path / "out"
    arguments = ["engine", "run", str(folder), "--shards", "3", *MODEL, *OPTIONS]
    command = [sys.executable, "-m", "sam_jax", *arguments, "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    # In the second shard, so that there are a finished one, a begun one and one that nobody has looked at.
    while len(list(out.glob(".work/000001/*.part"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = out / "sa_000000.tar"
    before = finished.stat().st_mtime_ns
    parts = len(list(out.glob(".work/*/*.part")))
    assert parts >= 2
    assert not (out / "manifest.json").exists()

    segmented = []
    generate = SamAutomaticMaskGenerator.generate_batch

    def count(self, images, on_empty):
        segmented.extend(images)
        return generate(self, images, on_empty)

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate_batch", count)
    assert cli.main([*arguments, "--out", str(out)]) == 0
    assert finished.stat().st_mtime_ns == before
    assert 0 < len(segmented) <= 48 - 16 - parts + 8  # images of a batch that was half written are done again
    assert cli.main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert tree(out) == tree(tmp_path / "whole")
    done = len(segmented)
    capsys.readouterr()
    assert cli.main([*arguments, "--out", str(out)]) == 0
    assert len(segmented) == done
    assert "48 images in 3 tars" in capsys.readouterr().out


def test_a_damaged_part_is_found_and_made_again(folder, whole, tmp_path):
    out = tmp_path / "out"
    write(out, {name: data for name, data in tree(whole).items() if "0001" not in name and name != "manifest.json"})
    parts = {
        f"{i}.part": join_files({f"sa_{i}.{e}": in_tars(tree(whole))[f"sa_{i}.{e}"] for e in ("jpg", "json")})
        for i in range(4, 9)
    }
    write(out / ".work" / "000001", parts | {"5.part": parts["5.part"][:-512], "6.part": b"", "8.part": bytes(2048)})
    assert run(folder, "--out", out, "--shards", 2) == 0
    assert tree(out) == tree(whole)


def test_two_processes_write_what_one_does(folder, whole, tmp_path, capsys):
    out = tmp_path / "out"
    for process in (1, 0):
        assert run(folder, "--out", out, "--shards", 2, "--process", process, "--processes", 2) == 0
        assert (out / "manifest.json").exists() == (process == 0)
    assert "1 of others are not" in capsys.readouterr().out
    assert tree(out) == tree(whole)
    assert run(folder, "--out", out, "--shards", 2, "--process", 1, "--processes", 3) == 2
    assert "give --shards of 3 or more" in capsys.readouterr().err


def test_object_stores_lists_and_globs_give_the_same_images(folder, whole, tmp_path):
    memory = fsspec.filesystem("memory")
    try:
        for name, data in photos().items():
            memory.pipe_file(f"/bucket/in/{name}", data)
        assert run("memory://bucket/in", "--out", "memory://bucket/out", "--shards", 2) == 0
        found = {f"sa_{i:06d}.tar": memory.cat_file(f"/bucket/out/sa_{i:06d}.tar") for i in range(2)}
        assert found == {name: data for name, data in tree(whole).items() if name.endswith(".tar")}
        manifest = json.loads(memory.cat_file("/bucket/out/manifest.json"))
        assert manifest == json.loads((whole / "manifest.json").read_text())
        assert not [name for name in memory.find("/bucket/out") if ".work" in name]

        out = Folder.at(str(tmp_path))
        names = [listed.name for listed in find_images([str(folder)], out)]
        assert names == sorted(photos())
        assert [p.name for p in find_images(["memory://bucket/in/**/*.jpg"], out)] == [
            name for name in names if name.endswith("jpg")
        ]
        listed = tmp_path / "list.txt"
        listed.write_text(f"memory://bucket/in/{names[0]}\n\n{folder / names[1]}\nc.png\nc.png\n")
        assert [p.url for p in find_images([str(listed)], Folder.at("memory://bucket/out"))] == [
            f"file://{folder}/{names[1]}",
            f"file://{tmp_path}/c.png",
            f"memory:///bucket/in/{names[0]}",
        ]
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("step", ["find", "cat_file"])  # before the run, and in its worker
def test_an_object_store_that_cannot_be_reached_ends_the_run_and_makes_no_image_a_bad_one(
    whole, capsys, monkeypatch, step
):
    unreachable = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    memory = fsspec.filesystem("memory")
    reached = getattr(memory, step)

    def fail(path, *arguments, **options):
        if path.endswith(("/in", "/4.png")):
            raise unreachable("could not connect to the endpoint")
        return reached(path, *arguments, **options)

    command = ("memory://bucket/in", "--out", "memory://bucket/out", "--shards", 2)
    try:
        for name, data in photos().items():
            memory.pipe_file(f"/bucket/in/{name}", data)
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), step, lambda self, *arguments, **options: fail(*arguments, **options))
            assert run(*command) == 2
        errors = capsys.readouterr().err
        assert "sam-jax: could not connect to the endpoint; what is finished is kept" in errors
        assert "Traceback" not in errors
        assert run(*command) == 0
        for i in range(2):
            assert memory.cat_file(f"/bucket/out/sa_{i:06d}.tar") == (whole / f"sa_{i:06d}.tar").read_bytes()
    finally:
        memory.rm("/bucket", recursive=True)


def test_images_of_sa_1b_keep_their_numbers_and_others_count(tmp_path):
    out = Folder.at(str(tmp_path / "out"))
    write(tmp_path, {"a/sa_12.jpg": b"", "a/sa_7.jpg": b"", "b/sa_7.jpg": b"", "out/c.jpg": b"", "a/notes.md": b""})
    assert {p.name: p.id for p in find_images([str(tmp_path / "a")], out)} == {"sa_12.jpg": 12, "sa_7.jpg": 7}
    assert [p.id for p in find_images([str(tmp_path)], out)] == [0, 1, 2]
    assert [p.name for p in find_images([str(tmp_path)], out)] == ["a/sa_12.jpg", "a/sa_7.jpg", "b/sa_7.jpg"]


BLUR = """
def hide(image):
    image[:40] = 0  # in place: must not reach what is segmented
    return image

def shrink(image):
    return image[::2]

def fail(image):
    raise KeyError("no face detector")
"""


def test_what_the_hook_hides_is_in_no_written_image_and_masks_are_of_the_original(
    folder, whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(write(tmp_path / "code", {"hiding.py": BLUR.encode()})))
    assert run(folder, "--out", tmp_path / "out", "--shards", 2, "--blur", "hiding:hide") == 0
    blurred, plain = (in_tars(tree(out)) for out in (tmp_path / "out", whole))
    assert set(blurred) == set(plain)
    for name, data in blurred.items():
        if name.endswith("json"):
            assert data == plain[name]
        else:
            rows = np.asarray(Image.open(io.BytesIO(data)))
            assert rows[:39].max() < 16
            assert rows[60:].std() > 10
    assert run(folder, "--out", tmp_path / "shape", "--blur", "hiding:shrink") == 2
    wrong = r"expected of --blur an image of shape \(150, \d+, 3\), uint8, got \(75, \d+, 3\) uint8 for file://.*jpg\n"
    assert re.search(wrong, capsys.readouterr().err)
    assert run(folder, "--out", tmp_path / "none", "--blur", "hiding:nothing") == 2
    assert "hiding:nothing" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert run(folder, "--out", tmp_path / "bad", "--blur", "hiding:fail") == 1
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    assert manifest["pictures"] == 0
    assert {entry["reason"] for entry in manifest["bad"]} == {"blur failed"}
    assert "no face detector" in manifest["bad"][0]["detail"]


def test_bad_images_are_listed_at_the_end_and_too_many_stop_the_run(tmp_path, capsys):
    good = dict(list(photos().items())[:2])
    bad = {"cut.jpg": good["deeper/9.jpg"][:900], "text.png": b"no image"}
    folder = write(tmp_path / "photos", good | bad)
    (tmp_path / "list.txt").write_text("\n".join([f"photos/{name}" for name in good | bad] + ["photos/gone.jpg"]))
    assert run(tmp_path / "list.txt", "--out", tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert "left out, 2 images: image cannot be used" in errors
    assert "left out, 1 images: image cannot be read" in errors
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["pictures"] == 2
    assert [entry["name"] for entry in manifest["bad"]] == [f"photos/{n}" for n in ("cut.jpg", "gone.jpg", "text.png")]
    assert "image file is truncated" in manifest["bad"][0]["detail"]
    write(folder, {f"more_{i}.jpg": b"x" for i in range(12)})
    assert run(folder, "--out", tmp_path / "many") == 2
    assert "records cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "many" / "manifest.json").exists()


def test_images_without_masks_are_left_out_and_named_with_what_was_dropped(folder, tmp_path, capsys):
    arguments = ["engine", "run", str(folder), "--out", str(tmp_path), "--points-per-side", "2", *MODEL]
    assert cli.main([*arguments, "--preset", "official", "--pred-iou-thresh", "1"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["without_masks"] == sorted(photos())
    assert (manifest["pictures"], manifest["masks"], in_tars(tree(tmp_path))) == (0, 0, {})
    predicted = COUNT * 2 * 2 * 3
    assert (manifest["dropped"]["predicted"], manifest["dropped"]["predicted_iou"]) == (predicted, predicted)
    assert (
        f"{COUNT} images are without masks: of {predicted} predicted masks {predicted} have a"
        in capsys.readouterr().out
    )


def test_results_of_other_settings_images_or_options_are_not_mixed(folder, whole, tmp_path, capsys):
    for arguments, message in (
        ([folder, "--out", whole, "--shards", 3], "shards 2 -> 3"),
        ([folder / "3.jpg", "--out", whole, "--shards", 2], "inputs"),
        ([folder, "--out", whole, "--shards", 2, "--min-mask-region-area", 5], "min_mask_region_area 0 -> 5"),
        ([folder, "--out", tmp_path / "a", "--shards", 10], "between 1 and 9 shards"),
        ([folder, "--out", tmp_path / "b", "--process", 1], "--process and --processes together"),
        ([folder, "--out", tmp_path / "b", "--process", 2, "--processes", 2], "0..1"),
        ([folder / "nothing", "--out", tmp_path / "b"], "no image, folder, list or glob"),
        ([folder, "--out", tmp_path / "c", "--model", "tinny"], "look at the spelling"),
        ([folder, "--out", "nowhere://d"], "nowhere"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_a_process_is_known_by_its_launcher_s_variables(monkeypatch):
    names = ("TPU_WORKER_HOSTNAMES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    for variables, expected in (
        ({}, (0, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, (2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "15"}, (15, 16)),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, (1, 4)),
        (
            {
                "TPU_WORKER_HOSTNAMES": "a,b",
                "TPU_WORKER_ID": "1",
                "MEGASCALE_COORDINATOR_ADDRESS": "a:1",
                "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2",
            },
            (5, 6),
        ),
    ):
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert find_process() == expected
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ValueError, match="SLURM started several processes"):
        find_process()


def test_the_disk_s_errors_are_told_and_leave_nothing_half(whole, tmp_path):
    out = Folder.at(str(tmp_path))
    with (
        pytest.raises(OSError, match=f"{tmp_path}/a/b.json.*No space.*the same command goes on"),
        out.open_to_write("a/b.json"),
    ):
        raise OSError(28, os.strerror(28))
    assert tree(tmp_path) == {}
