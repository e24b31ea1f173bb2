"""The command line: what it writes, and that mistakes end with a message and exit code 2 in place of a traceback."""

import importlib.metadata
import json
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from cases.images import make_image
from cases.models import SMALL
from sam_jax import read_image
from sam_jax.checkpoints import save_checkpoint
from sam_jax.commands import main as cli
from sam_jax.commands.demo import DEMO_PROMPTS
from sam_jax.modeling import init_params
from sam_jax.ops.rle import decode_rle
from sam_jax.predictor import Masks, SamPredictor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_checkpoint(path, init_params(SMALL, jax.random.key(0)), SMALL)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_image(40, 70)).save(path)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_segment_writes_overlay_masks_and_json_and_prints_where(photo, checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    prompts = ["--point", "30,20", "--point", "35.5,22", "--negative-point", "1,1", "--box", "10,5,60,38"]
    assert run("segment", photo, *prompts, "--model", checkpoint, "--out", out) == 0
    names = ["photo_overlay.png", "photo_mask_0.png", "photo_mask_1.png", "photo_mask_2.png", "photo.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)  # and no temporary file
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    assert read_image(out / "photo_overlay.png").shape == (40, 70, 3)
    content = json.loads((out / "photo.json").read_text())
    assert content["prompt"] == {
        "points": [[30, 20], [35.5, 22], [1, 1]],
        "labels": [1, 1, 0],
        "box": [10, 5, 60, 38],
    }
    scores = [record["predicted_iou"] for record in content["masks"]]
    assert scores == sorted(scores, reverse=True)
    for i, record in enumerate(content["masks"]):
        mask = decode_rle(record["segmentation"])
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"photo_mask_{i}.png")) == 255, mask)
        assert record["area"] == mask.sum()


def test_segment_looks_at_a_small_box_from_near(checkpoint, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    box = ["--box", "250,150,270,160"]
    out = ["--model", checkpoint, "--out", tmp_path]
    assert run("segment", tmp_path / "large.png", *box, *out, "--zoom", "0.01") == 0
    for record in json.loads((tmp_path / "large.json").read_text())["masks"]:
        mask = decode_rle(record["segmentation"])
        assert mask.shape == (200, 300)
        assert not mask[:, :228].any()
        assert not mask[:123].any()
    for margin, (x0, y0, x1, y1) in (("0", (250, 150, 270, 160)), ("0.1", (248, 149, 272, 161))):
        assert run("segment", tmp_path / "large.png", *box, *out, "--margin", margin) == 0
        for record in json.loads((tmp_path / "large.json").read_text())["masks"]:
            mask = decode_rle(record["segmentation"])
            assert mask.sum() == mask[y0:y1, x0:x1].sum()


def test_segment_keeps_an_embedding_and_takes_it_again(photo, checkpoint, tmp_path, capsys, monkeypatch):
    kept, out = tmp_path / "photo.safetensors", tmp_path / "out"
    command = ["segment", photo, "--point", "30,20", "--model", checkpoint, "--out", out, "--embedding", kept]
    assert run(*command) == 0
    first = (out / "photo.json").read_text()
    monkeypatch.setattr("sam_jax.predictor.embed", None)  # nothing is encoded any more
    assert run(*command) == 0
    assert (out / "photo.json").read_text() == first
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "other.png")
    assert run("segment", tmp_path / "other.png", *command[2:]) == 2
    assert "is of an image of (40, 70) (height, width)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("filled", "said"), [([0, 1, 2], ""), ([1], "2 of 3 masks hold no pixel"), ([], "3 of 3 masks")]
)
def test_segment_says_that_masks_are_empty(photo, checkpoint, tmp_path, monkeypatch, capsys, filled, said):
    masks = np.zeros((1, 3, 40, 70), bool)
    masks[0, filled, 5:9, 5:9] = True
    answer = Masks(masks, np.array([[0.9, 0.8, 0.7]]), np.zeros((1, 3, 16, 16)))
    monkeypatch.setattr(SamPredictor, "set_image", lambda *_: None)
    monkeypatch.setattr(SamPredictor, "predict_prompts", lambda *_, **__: answer)
    assert run("segment", photo, "--point", "6,6", "--model", checkpoint, "--out", tmp_path) == 0
    told = capsys.readouterr().err
    assert said in told
    assert bool(told) == bool(said)


def test_segment_writes_one_mask_when_asked_and_replaces_older_results(photo, checkpoint, tmp_path):
    for _ in range(2):
        assert run("segment", photo, "--box", "10,5,60,38", "--model", checkpoint, "--out", tmp_path, "--single") == 0
    assert len(json.loads((tmp_path / "photo.json").read_text())["masks"]) == 1
    assert not (tmp_path / "photo_mask_1.png").exists()


def test_demo_cuts_every_object_it_names_out_of_the_photographs_in_the_package(checkpoint, tmp_path, capsys):
    assert run("demo", "--out", tmp_path, "--model", checkpoint) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "demo.png"), str(tmp_path / "demo.json")]
    content = json.loads((tmp_path / "demo.json").read_text())
    named = [(record["image"], record["name"]) for record in content["masks"]]
    assert named == [(image, name) for image, prompts in DEMO_PROMPTS.items() for name in prompts]
    height, width, _ = read_image(tmp_path / "demo.png").shape
    H, W = content["masks"][0]["segmentation"]["size"]
    assert height > (len(DEMO_PROMPTS) + 1) * H  # a row for each photograph, and one for the masks of one click
    assert width > 3 * W  # prompts, masks, cut-outs


def test_convert_writes_what_load_reads_and_overwrites_only_when_asked(checkpoint, tmp_path, capsys):
    target = tmp_path / "converted.safetensors"
    assert run("convert", checkpoint, target) == 0
    assert target.exists()
    assert run("convert", checkpoint, target) == 2
    message = capsys.readouterr().err
    assert str(target) in message
    assert "--overwrite" in message
    assert run("convert", checkpoint, target, "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "PHOTO"], "expected a prompt"),
        (["segment", "missing.jpg", "--point", "1,1"], "missing.jpg"),
        (["segment", "MODEL", "--point", "1,1"], "image cannot be decoded"),
        (["segment", "PHOTO", "--point", "1;1"], "--point expects 2 numbers joined by commas, got '1;1'"),
        (["segment", "PHOTO", "--point", "1,1,1"], "--point expects 2 numbers"),
        (["segment", "PHOTO", "--box", "1,1,5"], "--box expects 4 numbers"),
        (["segment", "PHOTO", "--point", "70,1"], "outside the image of 70 x 40"),
        (["segment", "PHOTO", "--negative-point", "-1,1"], "outside the image"),
        (["segment", "PHOTO", "--point", "nan,1"], "finite"),
        (["segment", "PHOTO", "--box", "9,9,3,12"], "x1 > x0"),
        (["segment", "PHOTO", "--box", "1,1,5,5", "--point", "2,2", "--zoom", "0.1"], "--zoom goes with --box alone"),
        (["segment", "PHOTO", "--point", "2,2", "--margin", "0"], "--margin goes with --box"),
        (["segment", "PHOTO", "--point", "1,1", "--model", "vit_x"], "vit_x"),
        (["segment", "PHOTO", "--point", "1,1", "--model", "PHOTO"], "photo.jpg"),
        (["segment", "PHOTO", "--point", "1,1", "--model", "MODEL", "--out", "PHOTO"], "photo.jpg"),
        (["convert", "missing.pth", "to.safetensors"], "missing.pth"),
    ],
)
def test_a_mistake_ends_with_a_message_and_exit_code_2(photo, checkpoint, capsys, arguments, message):
    names = {"PHOTO": photo, "MODEL": checkpoint}
    assert run(*(names.get(argument, argument) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sam-jax: ")
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["segment"], ["segment", "a.jpg", "--points", "1,1"]])
def test_a_mistake_in_the_command_itself_ends_with_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_train_and_eval_list_the_configs_that_they_take_and_a_config_lists_its_fields(capsys):
    assert run("train", "--help") == 0
    assert "  finetune_coco    Fine-tunes the decoder on images of one's own" in capsys.readouterr().out
    assert run("eval") == 2
    assert "  edges " in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        run("eval", "edges", "--help")
    assert exit_.value.code == 0
    assert "--points-per-side" in capsys.readouterr().out


def test_a_config_that_needs_data_asks_for_them_by_name(tmp_path, capsys):
    for task, name, option in (("eval", "edges", "--data"), ("eval", "instances", "--annotations")):
        with pytest.raises(SystemExit) as exit_:
            run(task, name, "--out", tmp_path)
        assert exit_.value.code == 2
        assert option in capsys.readouterr().err
    assert run("train", "small", "--out", tmp_path / "run") == 2
    assert "say where it is with --data.path" in capsys.readouterr().err


def test_the_version_is_printed_and_the_package_is_the_command():
    asked = [sys.executable, "-m", "sam_jax", "--version"]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert shown.stdout == f"sam-jax {importlib.metadata.version('sam_jax')}\n"


@pytest.mark.parametrize("root_prints_too", [False, True])
def test_a_command_says_each_warning_once(monkeypatch, capsys, root_prints_too):
    class Reading:
        def run(self):
            for path in ("a.json", "b.json", "a.json"):
                logging.getLogger("sam_jax.data.coco").warning("left out of %s: 1 x no image", path)
            logging.getLogger("sam_jax.data.sources").warning("left out of a.json: 1 x no image")
            logging.getLogger("sam_jax").info("not for users")

    monkeypatch.setattr(cli, "parse", lambda arguments: Reading())
    another = logging.StreamHandler(sys.stderr)
    if root_prints_too:  # as absl and Beam make it
        logging.getLogger().addHandler(another)
    try:
        for _ in range(2):  # commands are apart
            assert cli.main(["read"]) == 0
            assert capsys.readouterr().err == "".join(
                f"sam-jax: left out of {path}: 1 x no image\n" for path in ("a.json", "b.json")
            )
    finally:
        logging.getLogger().removeHandler(another)
    assert logging.getLogger("sam_jax").handlers == []
