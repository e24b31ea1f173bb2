"""The model in the package: the default everywhere, alone there, and good enough for the package's photographs."""

import dataclasses
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import sam_jax
from sam_jax.commands import main as cli
from sam_jax.commands.demo import DEMO_PROMPTS
from sam_jax.commands.main import parse
from sam_jax.config import SMALL
from sam_jax.everything.options import DEFAULT, PAPER
from sam_jax.ops.rle import decode_rle

ASSETS = Path(str(resources.files("sam_jax"))) / "assets"
PHOTOGRAPHS = ASSETS / "demo"


@pytest.fixture(scope="module")
def model():
    return sam_jax.load_model()


def test_it_is_the_default_and_the_package_holds_no_other(model):
    assert [path.name for path in ASSETS.rglob("*.safetensors")] == ["small.safetensors"]
    assert (ASSETS / "small.safetensors").stat().st_size <= 16 * 2**20
    assert model.config == SMALL
    assert DEFAULT.model == PAPER.model == "small"
    for command in (["segment", "a.jpg"], ["demo"]):
        assert parse(command).model == "small"
    assert parse(["search", "a.jpg"]).generator.model == "small"


def test_everything_mode_takes_its_own_options_in_python_and_in_commands(model):
    own = model.everything.to_fields()
    assert own
    config = sam_jax.SamAutomaticMaskGenerator(model).config
    assert own == {name: getattr(config, name) for name in own}
    assert DEFAULT.config() == dataclasses.replace(config, output_mode="coco_rle")
    assert own == {name: getattr(PAPER.config(), name) for name in own}


def test_everything_mode_finds_masks(model):
    generator = sam_jax.SamAutomaticMaskGenerator(model, points_per_side=8, crop_n_layers=0)
    assert len(generator.generate(sam_jax.read_image(PHOTOGRAPHS / "kingfisher.jpg"))) >= 3


def test_the_demo_s_masks_lie_where_its_prompts_are(tmp_path):
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    masks = {record["name"]: record for record in json.loads((tmp_path / "demo.json").read_text())["masks"]}
    for prompts in DEMO_PROMPTS.values():
        for name, prompt in prompts.items():
            mask = decode_rle(masks[name]["segmentation"])
            if prompt.points is not None:
                (x, y), *_ = prompt.points
                assert mask[y, x], name
            if prompt.box is not None:
                x0, y0, x1, y1 = prompt.box
                assert mask[y0:y1, x0:x1].sum() > 0.9 * mask.sum(), name
                assert mask.sum() > 0.1 * (y1 - y0) * (x1 - x0), name


def test_a_click_on_an_object_gives_the_object(tmp_path):
    photograph = PHOTOGRAPHS / "kingfisher.jpg"
    assert cli.main(["segment", str(photograph), "--point", "304,172", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "kingfisher.json").read_text())["masks"]
    areas = [record["area"] for record in records if decode_rle(record["segmentation"])[172, 304]]
    pixels = np.prod(sam_jax.read_image(photograph).shape[:2])
    assert any(0.01 * pixels < area < 0.3 * pixels for area in areas)
