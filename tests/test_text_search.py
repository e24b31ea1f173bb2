"""Objects found by text among all masks, text on the command line, and the evaluation of texts."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from cases.models import SMALL_CLIP as CLIP
from cases.models import WITH_TEXT
from sam_jax.checkpoints import save_checkpoint
from sam_jax.checkpoints.sam import without_text_prompt
from sam_jax.clip.network import init_clip_params
from sam_jax.commands import main as cli
from sam_jax.config import DataConfig
from sam_jax.data.phrases import PhrasedExample, read_phrases
from sam_jax.data.shapes import COLOURS, draw_image, relations, write_shapes
from sam_jax.data.sources import open_source
from sam_jax.errors import UserError
from sam_jax.evals.text import ROWS, TextEvalConfig, exchange_texts
from sam_jax.everything.text_search import search
from sam_jax.modeling import init_params
from sam_jax.ops.rle import counts_from_mask, encode_rle
from sam_jax.ops.transforms import as_rgb


class KnownMasks:
    """Stands in for everything mode, with given masks in the form that is asked for."""

    def __init__(self, *masks: np.ndarray, form=encode_rle) -> None:
        self.records = [{"segmentation": form(mask), "area": int(mask.sum())} for mask in masks]

    def check_image(self, image: np.ndarray) -> np.ndarray:
        return as_rgb(image)

    def generate(self, image: np.ndarray) -> list[dict]:
        return self.records


class ColourClip:
    """A CLIP that knows red, green and blue, and embeds an object as the mean colour in its mask."""

    def embed_texts(self, texts):
        return np.eye(3, dtype=np.float32)[[("red", "green", "blue").index(text) for text in texts]]

    def embed_objects(self, image, masks):
        means = np.array([image[mask].mean(0) for mask in masks])
        return means / np.linalg.norm(means, axis=-1, keepdims=True)


def stripes() -> tuple[np.ndarray, list[np.ndarray]]:
    image, masks = np.zeros((40, 70, 3), np.uint8), []
    for i in range(20):
        mask = np.zeros((40, 70), bool)
        mask[2 * i : 2 * i + 2] = True
        image[mask] = (255 - 10 * i, 10 * i, 20)
        masks.append(mask)
    return image, masks


@pytest.mark.parametrize(
    "form", [encode_rle, np.asarray, lambda mask: {"size": mask.shape, "counts": counts_from_mask(mask).tolist()}]
)
def test_masks_are_ranked_by_similarity_for_each_text(form):
    image, masks = stripes()
    red, green = search(KnownMasks(*masks, form=form), ColourClip(), image, ["red", "green"], top=3)
    areas = [int(found.record["area"]) for found in red]
    assert areas == [140, 140, 140]
    similarities = [found.similarity for found in red]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(255 / np.hypot(255, 20))
    assert green[0].margin > 0.2
    assert search(KnownMasks(), ColourClip(), image, ["red"]) == [[]]
    with pytest.raises(ValueError, match="top 0"):
        search(KnownMasks(*masks), ColourClip(), image, ["red"], top=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A SAM with a text prompt, one without, their CLIP and a photo."""
    folder = tmp_path_factory.mktemp("text")
    params = jax.device_get(init_params(WITH_TEXT, jax.random.key(0)))
    save_checkpoint(folder / "text.safetensors", params, WITH_TEXT)
    save_checkpoint(folder / "plain.safetensors", *without_text_prompt(params, WITH_TEXT))
    clip = jax.device_get(init_clip_params(CLIP, jax.random.key(1)))
    save_checkpoint(folder / "clip.safetensors", clip, CLIP)
    clip["visual"]["proj"], clip["text"]["text_projection"] = (
        table[:, :16] for table in (clip["visual"]["proj"], clip["text"]["text_projection"])
    )
    other = dataclasses.replace(CLIP, name="other", embedding_dim=16)
    save_checkpoint(folder / "other.safetensors", clip, other)
    Image.fromarray(stripes()[0]).save(folder / "photo.png")
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_segment_takes_a_text_alone_and_with_a_point(files, tmp_path):
    model = ["--model", files / "text.safetensors", "--clip", files / "clip.safetensors", "--out", tmp_path]
    assert run("segment", files / "photo.png", "--text", "a wheel", *model) == 0
    alone = json.loads((tmp_path / "photo.json").read_text())
    assert alone["prompt"] == {"points": [], "labels": [], "box": None, "text": "a wheel"}
    assert len(alone["masks"]) == 3
    assert run("segment", files / "photo.png", "--text", "a wheel", "--point", "9,9", *model) == 0
    both = json.loads((tmp_path / "photo.json").read_text())
    assert both["masks"] != alone["masks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment", "photo.png", "--text", " ", "--model", "text", "--clip", "clip"], "says what to look for"),
        (["segment", "photo.png", "--text", "a wheel", "--model", "plain", "--clip", "clip"], "not trained for text"),
        (
            ["segment", "photo.png", "--text", "a wheel", "--model", "text"],
            "'small'; give the path of its checkpoint with --clip",
        ),
        (["segment", "photo.png", "--text", "a wheel", "--model", "text", "--clip", "other"], "16"),
        (["segment", "photo.png", "--text", "a wheel", "--model", "text", "--clip", "plain"], "expected a CLIP"),
        (["search", "photo.png", "--model", "plain", "--clip", "clip"], "--text"),
        (["search", "photo.png", "--text", "word " * 90, "--model", "plain", "--clip", "clip"], "at most 75 tokens"),
    ],
)
def test_mistakes_with_texts_end_with_a_message(files, capsys, arguments, message):
    arguments = [files / f"{a}.safetensors" if a in ("text", "plain", "clip", "other") else a for a in arguments]
    arguments = [files / a if a == "photo.png" else a for a in arguments]
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_an_evaluation_of_a_model_with_its_own_clip_asks_for_it(files):
    with pytest.raises(UserError, match="a CLIP of its own, 'small'; give the path of its checkpoint with --clip"):
        TextEvalConfig(files, str(files / "text.safetensors")).evaluate()


def test_a_search_without_any_mask_says_so(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sam_jax.everything.generator.SamAutomaticMaskGenerator", lambda *_, **__: KnownMasks())
    models = ["--model", files / "plain.safetensors", "--clip", files / "clip.safetensors"]
    assert run("search", files / "photo.png", "--text", "a wheel", *models, "--out", tmp_path) == 0
    assert "nothing is found for any text: photo.png is without masks" in capsys.readouterr().out
    assert json.loads((tmp_path / "photo.json").read_text())["found"] == [{"text": "a wheel", "masks": []}]


def test_the_search_command_writes_what_it_found(files, tmp_path, monkeypatch):
    _, masks = stripes()
    monkeypatch.setattr("sam_jax.everything.generator.SamAutomaticMaskGenerator", lambda *_, **__: KnownMasks(*masks))
    texts = ["--text", "a wheel", "--text", "green grass", "--top", 2]
    models = ["--model", files / "plain.safetensors", "--clip", files / "clip.safetensors"]
    assert run("search", files / "photo.png", *texts, *models, "--out", tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.json", "photo_0.png", "photo_1.png"]
    content = json.loads((tmp_path / "photo.json").read_text())
    assert [answer["text"] for answer in content["found"]] == ["a wheel", "green grass"]
    for answer in content["found"]:
        assert len(answer["masks"]) == 2
        assert answer["masks"][0]["similarity"] >= answer["masks"][1]["similarity"]


def test_shapes_do_not_overlap_and_each_has_a_description_of_its_own():
    for seed in range(8):
        image, shapes = draw_image(np.random.default_rng(seed))
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        assert 2 <= len(shapes) <= 5
        assert sum(shape.mask.astype(int) for shape in shapes).max() == 1
        assert len({shape.caption for shape in shapes}) == len(shapes)
        for shape in shapes:
            mean = image[shape.mask].mean(0)
            assert np.abs(mean - COLOURS[shape.colour]).max() < 30
        for one, other, text in relations(shapes):
            assert text.startswith(one.caption)
            assert text.endswith(other.caption)
            if "left of" in text:
                assert one.centre[0] < other.centre[0]
            if "above" in text:
                assert one.centre[1] < other.centre[1]


def test_written_shapes_are_training_data_and_phrases(tmp_path):
    path = write_shapes(tmp_path, 4, seed=3)
    train, validation = open_source(DataConfig(path=tmp_path, format="coco"))
    assert len(train) + len(validation) == 4
    rows = read_phrases(path)
    assert len(rows) == 4
    _, shapes = draw_image(np.random.default_rng((3, 0)))
    assert rows[0].texts == tuple(shape.caption for shape in shapes)
    assert [mask["counts"] for mask in rows[0].example.masks] == [encode_rle(s.mask)["counts"] for s in shapes]


def coco(tmp_path, annotations: list[dict], categories=({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})):
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "a.png")
    annotations = [{"image_id": 1, "segmentation": encode_rle(mask)} | annotation for annotation in annotations]
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))
    return path


def test_referring_expressions_are_read_in_their_usual_forms_and_names_only_where_they_are_clear(tmp_path):
    referring = [
        {"sentences": [{"sent": "left cat"}, {"raw": "the grey one "}], "category_id": 1},
        {"caption": "a cat", "category_id": 1},
        {"expressions": ["x", "", "y"], "iscrowd": 0},
        {"category_id": 2},
    ]
    (row,) = read_phrases(coco(tmp_path, referring))
    assert row.texts == ("left cat", "the grey one", "a cat", "x", "y")
    (row,) = read_phrases(coco(tmp_path, [{"category_id": 1}, {"category_id": 1}, {"category_id": 2}]))
    assert row.texts == ("dog",)
    assert read_phrases(tmp_path)[0].texts == ("dog",)
    with pytest.raises(ValueError, match="found no texts"):
        read_phrases(coco(tmp_path, [{"category_id": 1}], ()))
    (tmp_path / "annotations.json").write_text("[]")
    with pytest.raises(ValueError, match="COCO-format"):
        read_phrases(tmp_path / "annotations.json")


def test_exchanged_texts_are_never_the_masks_own(tmp_path):
    (row,) = read_phrases(coco(tmp_path, [{"caption": "a"}]))
    rows = [PhrasedExample(row.example, texts) for texts in (("a", "b", "c"), ("a", "d"), ("a", "b", "e", "f"))]
    for seed in range(5):
        others = exchange_texts(rows, seed)
        assert sorted(text for part in others for text in part) == sorted("abcadabef")
        for part, row in zip(others, rows, strict=True):
            assert len(part) == len(row.texts)
            assert all(one != other for one, other in zip(part, row.texts, strict=True))
    with pytest.raises(ValueError, match="4 of 5 are 'a'"):
        exchange_texts([PhrasedExample(row.example, ("a", "a", "a", "a", "b"))], 0)


def test_the_evaluation_measures_every_row_and_goes_on_where_it_was(files, tmp_path):
    write_shapes(tmp_path / "data", 2, seed=0)
    config = TextEvalConfig(
        tmp_path / "data", str(files / "text.safetensors"), tmp_path / "out", clip=str(files / "clip.safetensors")
    )
    report = config.evaluate()
    assert report.results["pictures"] == 2
    for name, label in ROWS.items():
        assert 0 <= report.results[name] <= 100
        assert f"| {label} |" in report.table
    assert report.results["text_best"] >= report.results["text"]
    log = tmp_path / "out" / "text.jsonl"
    lines = log.read_text().splitlines()
    record = json.loads(lines[1])
    record["masks"][0]["text_iou"] += 1.0  # what is recorded is not measured again
    log.write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
    again = config.evaluate().results
    assert again["text"] == pytest.approx(report.results["text"] + 100 / again["masks"])
    with pytest.raises(ValueError, match="not trained for text prompts"):
        dataclasses.replace(config, model=str(files / "plain.safetensors")).evaluate()
