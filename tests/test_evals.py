"""The click protocol by hand, and an evaluation that cannot flatter, resumes, and samples alike for every method."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_loop import write_examples
from test_training import SMALL

from sam_jax.data.examples import Example
from sam_jax.evals import single_point
from sam_jax.evals.baselines import Disc, GrabCut, RegionGrowing
from sam_jax.evals.clicks import first_click, inscribed_radius, next_click
from sam_jax.evals.metrics import mask_iou
from sam_jax.evals.segmenters import Answer, Clicks, SamSegmenter
from sam_jax.evals.single_point import SinglePointConfig, evaluate_picture, report, run, sample_examples, summarize
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.ops.rle import decode_rle, encode_rle


def rectangle(x0: int, y0: int, x1: int, y1: int, size=(20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_first_click_is_the_middle_and_the_picture_border_counts():
    assert first_click(rectangle(5, 4, 12, 9)) == ((7, 6), 1)  # 7 x 5: three middles, the leftmost is first
    assert first_click(rectangle(0, 0, 5, 20)) == ((2, 2), 1)
    assert inscribed_radius(np.ones((3, 3), bool))[1, 1] == 2
    region = np.random.default_rng(0).random((12, 15)) < 0.8
    ys, xs = np.nonzero(~np.pad(region, 1))
    for y, x in np.argwhere(region)[::7]:
        nearest = np.sqrt(((ys - 1 - y) ** 2 + (xs - 1 - x) ** 2).min())
        assert inscribed_radius(region)[y, x] == pytest.approx(nearest, rel=1e-5)


def test_the_next_click_goes_to_the_larger_error_and_never_twice_to_a_pixel():
    truth = rectangle(2, 2, 9, 9)
    missed_more = next_click(truth, rectangle(20, 2, 23, 5), [])
    assert missed_more == ((5, 5), 1)
    wrong_more = next_click(truth, truth | rectangle(15, 2, 29, 19), [])
    assert wrong_more[1] == 0
    assert not truth[wrong_more[0][1], wrong_more[0][0]]
    again = next_click(truth, rectangle(20, 2, 23, 5), [(5, 5)])
    assert again[0] != (5, 5)
    # A tie is a background click; ignored pixels attract none.
    assert next_click(rectangle(2, 2, 5, 5), rectangle(12, 2, 15, 5), [])[1] == 0
    assert next_click(truth, rectangle(20, 2, 23, 5), [], ignore=truth)[1] == 0


def test_iou_by_hand_and_without_the_ignored_pixels():
    assert mask_iou(rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4)) == 8 / 24
    assert mask_iou(rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4), ignore=rectangle(0, 0, 2, 20)) == 8 / 16
    assert mask_iou(rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)) == 1


class Oracle:
    """Answers with the truth, or with nothing."""

    def __init__(self, example: Example, name: str) -> None:
        self.name, self._truths = name, [decode_rle(mask) for mask in example.masks]

    def open(self, image):
        return self

    def segment(self, clicks):
        return [Answer(truth[None] * (self.name == "oracle")) for truth in self._truths]


@pytest.mark.parametrize(("name", "expected"), [("oracle", 1.0), ("nothing", 0.0)])
def test_a_perfect_method_scores_one_and_an_empty_one_nothing(tmp_path, name, expected):
    example = write_examples(tmp_path, 1)[0]
    for record in evaluate_picture(Oracle(example, name), example, clicks=3):
        assert record["iou"] == [expected] * 3
        assert record["best"] == expected
    assert summarize(evaluate_picture(Oracle(example, name), example, 3))["iou@3"] == 100 * expected


@pytest.mark.parametrize("method", [RegionGrowing(16), GrabCut(0.03, 6.0), Disc(0.15)])
def test_the_baselines_find_a_plain_object_better_than_chance(tmp_path, method):
    records = [r for e in write_examples(tmp_path, 2) for r in evaluate_picture(method, e, clicks=2)]
    assert np.mean([r["iou"][0] for r in records]) > (0.4 if isinstance(method, Disc) else 0.8)


def test_the_sample_is_a_function_of_its_seed_and_0_means_all(tmp_path):
    examples = write_examples(tmp_path, 6)
    names = lambda sample: [(e.path.name, e.masks) for e in sample]  # noqa: E731
    one = sample_examples(examples, 3, 1, seed=0)
    assert (
        names(one) == names(sample_examples(examples, 3, 1, seed=0)) != names(sample_examples(examples, 3, 1, seed=1))
    )
    assert [len(e.masks) for e in one] == [1, 1, 1]
    assert names(sample_examples(examples, 0, 0, seed=0)) == names(examples)


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    examples = write_examples(tmp_path / "data", 3)
    monkeypatch.setitem(single_point.DATASETS, "synthetic", lambda root: examples)
    return SinglePointConfig(
        out=tmp_path / "out",
        data=tmp_path,
        datasets=("synthetic", "bsds500"),
        methods=("sam", "disc"),
        clicks=3,
        workers=1,
    )


def make_segmenter(method):
    return Disc() if method == "disc" else SamSegmenter(Sam(SMALL, init_params(SMALL, jax.random.key(0))))


def test_model_and_baseline_run_end_to_end_and_a_missing_set_is_left_out(config, capsys):
    results = run(config, make_segmenter)
    assert set(results) == {"sam", "disc"}
    assert set(results["sam"]) == {"synthetic"}
    assert "bsds500 is left out" in capsys.readouterr().out
    assert results["sam"]["synthetic"]["masks"] == 6
    assert 0 <= results["sam"]["synthetic"]["iou@3"] <= 100
    assert results["sam"]["synthetic"]["best@1"] >= results["sam"]["synthetic"]["iou@1"]
    table = report(results)
    assert "sam, best of three" in table
    assert "synthetic (6 masks) @5" in table


def test_an_interrupted_evaluation_goes_on_and_another_protocol_starts_anew(config):
    whole = run(config, make_segmenter)
    path = config.out / "disc.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][:10])  # killed while it wrote the second picture

    opened = []

    class Counting(Disc):
        def open(self, image):
            opened.append(image)
            return super().open(image)

    assert run(config, lambda method: Counting() if method == "disc" else make_segmenter(method)) == whole
    assert len(opened) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()] == [json.loads(line) for line in lines]
    path.write_text("\n".join([json.dumps({"clicks": 9}), *lines[1:]]) + "\n")
    opened.clear()
    run(config, lambda method: Counting() if method == "disc" else make_segmenter(method))
    assert len(opened) == 3


def test_ignored_pixels_do_not_count_in_an_evaluation(tmp_path):
    example = write_examples(tmp_path, 1)[0]
    truth = decode_rle(example.masks[0])
    wide = truth | np.roll(truth, 10, axis=1)
    half = Example(example.path, example.size, (encode_rle(truth),), "x", ignore=encode_rle(wide & ~truth))
    answer = Oracle(Example(example.path, example.size, (encode_rle(wide),), "x"), "oracle")
    assert evaluate_picture(answer, half, clicks=2)[0]["iou"] == [1.0, 1.0]


def test_a_mask_without_an_error_gets_no_further_click(tmp_path):
    example = write_examples(tmp_path, 1)[0]
    truth = decode_rle(example.masks[0])
    assert next_click(truth, truth, []) is None
    assert next_click(truth, truth | np.roll(truth, 40, 0), [], ignore=np.roll(truth, 40, 0)) is None

    class Watching(Oracle):
        def segment(self, clicks):
            assert [len(click.points) for click in clicks] == [1] * len(clicks)
            return super().segment(clicks)

    assert [r["iou"] for r in evaluate_picture(Watching(example, "oracle"), example, clicks=3)] == [[1.0] * 3] * 2


def test_the_first_click_avoids_ignored_pixels_and_needs_a_pixel():
    truth = rectangle(0, 0, 20, 10)
    (x, _), label = first_click(truth, ignore=rectangle(4, 0, 20, 20))
    assert (label, x < 4) == (1, True)
    with pytest.raises(ValueError, match="at least one pixel"):
        first_click(np.zeros((5, 5), bool))


def test_a_model_that_was_trained_further_is_evaluated_anew(config):
    params = init_params(SMALL, jax.random.key(0))
    config = dataclasses.replace(config, methods=("sam",), clicks=1)
    first = run(config, lambda method: SamSegmenter(Sam(SMALL, params)))
    assert run(config, lambda method: SamSegmenter(Sam(SMALL, params))) == first
    other = init_params(SMALL, jax.random.key(1))
    assert SamSegmenter(Sam(SMALL, other)).identity != SamSegmenter(Sam(SMALL, params)).identity
    run(config, lambda method: SamSegmenter(Sam(SMALL, other)))
    header = json.loads((config.out / "sam.jsonl").read_text().splitlines()[0])
    assert header["segmenter"] == SamSegmenter(Sam(SMALL, other)).identity


def test_validation_gives_the_same_numbers_as_the_evaluation_of_the_same_masks(config):
    model = Sam(SMALL, init_params(SMALL, jax.random.key(0)))
    examples = single_point.DATASETS["synthetic"](config.data)
    results = run(dataclasses.replace(config, methods=("sam",)), lambda method: SamSegmenter(model))
    assert single_point.evaluate(model, examples, clicks=3) == results["sam"]["synthetic"]


def test_unknown_and_missing_datasets_are_named(config):
    with pytest.raises(ValueError, match=r"unknown datasets \['cats'\]"):
        run(dataclasses.replace(config, datasets=("cats",)), make_segmenter)
    with pytest.raises(FileNotFoundError, match="none of the datasets bsds500"):
        run(dataclasses.replace(config, datasets=("bsds500",)), make_segmenter)


def test_a_pixel_reached_from_clicks_of_both_kinds_goes_to_the_nearer():
    grey = np.full((10, 30, 3), 128, np.uint8)
    (answer,) = RegionGrowing().open(grey).segment([Clicks([(5, 5), (25, 5)], [1, 0])])
    assert answer.masks[0][:, :15].all()
    assert not answer.masks[0][:, 15:].any()
