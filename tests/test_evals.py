"""An evaluation that cannot flatter, names what it leaves out, resumes, and samples alike for every method."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from cases.images import rectangle
from cases.models import SMALL
from cases.training import write_examples
from sam_jax.data.examples import Example
from sam_jax.data.zero_shot import registry
from sam_jax.data.zero_shot.registry import ZeroShotDataset
from sam_jax.errors import BadRecord, UserError
from sam_jax.evals.baselines import Disc, GrabCut, RegionGrowing
from sam_jax.evals.click_runs import sample_examples
from sam_jax.evals.click_simulation import ClickRules, simulate_clicks, simulate_images
from sam_jax.evals.clicks import next_click
from sam_jax.evals.records import read_records, sum_counts
from sam_jax.evals.segmenters import Clicks, SamSegmenter
from sam_jax.evals.single_point import MEAN_ROW, SinglePointConfig, count_record, run, summarize
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.ops.rle import decode_rle, encode_rle


class Oracle:
    """Answers with the ground truth, or with nothing."""

    def __init__(self, example: Example, name: str) -> None:
        self.name, self._ground_truths = name, [decode_rle(mask) for mask in example.masks]

    def open_session(self, image):
        return self

    def segment(self, clicks):
        return [ground_truth[None] * (self.name == "oracle") for ground_truth in self._ground_truths]


def simulate(segmenter, example, clicks):
    return simulate_clicks(segmenter, example, ClickRules(clicks)).records


def add(records):
    return sum_counts(count_record(record) for record in records)


@pytest.mark.parametrize(("name", "expected"), [("oracle", 1), ("nothing", 0)])
def test_a_perfect_method_scores_one_and_an_empty_one_nothing(tmp_path, name, expected):
    example = write_examples(tmp_path, 1)[0]
    records = simulate(Oracle(example, name), example, clicks=3)
    for record in records:
        assert record["iou"] == [expected] * 3
        assert record["best"] == expected
    names = ("best@1", "iou@1", "iou@2", "iou@3")
    assert summarize([add(records)]) == {
        "masks": 2,
        "gap@1": 0,
        **dict.fromkeys(names, 100 * expected),
        "intervals": {"gap@1": [0, 0]} | dict.fromkeys(names, [100 * expected] * 2),
    }


class Scripted:
    """Gives three masks at the first click, one later, and notes the clicks."""

    name = identity = "scripted"

    def __init__(self, *answers: list[np.ndarray]) -> None:
        self.answers, self.clicks = answers, []

    def open_session(self, image):
        return self

    def segment(self, clicks):
        answer = self.answers[len(self.clicks)]
        self.clicks.append([(list(c.points), list(c.labels)) for c in clicks])
        return [np.array(answer)]


def test_clicks_on_a_few_pixels_by_hand(tmp_path):
    """A square of 4 x 4; the most trusted of three masks, then two corrections."""
    example = write_examples(tmp_path, 1)[0]
    square = lambda x0, x1: rectangle(x0, 4, x1, 8, example.size)  # noqa: E731
    ground_truth = square(4, 8)
    segmenter = Scripted([square(4, 6), ground_truth, square(0, 0)], [square(4, 10)], [ground_truth])
    (record,) = simulate(segmenter, dataclasses.replace(example, masks=(encode_rle(ground_truth),)), clicks=4)
    assert record == {"mask": 0, "area": 16, "iou": [0.5, 0.666667, 1, 1], "best": 1}
    assert segmenter.clicks == [
        [([(5, 5)], [1])],
        [([(5, 5), (6, 4)], [1, 1])],  # the missed half, x 6..7: radius 1 everywhere, the first pixel
        [([(5, 5), (6, 4), (8, 4)], [1, 1, 0])],  # the wrong part, x 8..9
    ]
    summary = summarize([add([record])])
    assert (summary["best@1"], summary["iou@1"], summary["gap@1"]) == (100, 50, 50)


def test_an_object_that_is_good_enough_gets_no_further_click(tmp_path):
    example = write_examples(tmp_path, 1)[0]
    ground_truth = rectangle(4, 4, 8, 8, example.size)
    segmenter = Scripted([ground_truth & ~rectangle(4, 4, 5, 5, example.size)], [ground_truth])
    example = dataclasses.replace(example, masks=(encode_rle(ground_truth),))
    (record,) = simulate_clicks(segmenter, example, ClickRules(20, enough=0.9)).records
    assert record["iou"] == [15 / 16] * 20
    assert len(segmenter.clicks) == 1


@pytest.mark.parametrize("method", [RegionGrowing(16), GrabCut(0.03, 6.0), Disc(0.15)])
def test_the_baselines_find_a_plain_object_better_than_chance(tmp_path, method):
    records = [r for e in write_examples(tmp_path, 2) for r in simulate(method, e, clicks=2)]
    assert np.mean([r["iou"][0] for r in records]) > (0.4 if isinstance(method, Disc) else 0.8)


def test_the_sample_is_a_function_of_its_seed_and_0_means_all(tmp_path):
    examples = write_examples(tmp_path, 6)
    draw = lambda *args, **kwargs: {n: e.masks for n, e in sample_examples(examples, *args, **kwargs).examples.items()}  # noqa: E731
    one = draw(3, 1, seed=0)
    assert one == draw(3, 1, seed=0) != draw(3, 1, seed=1)
    assert [len(masks) for masks in one.values()] == [1, 1, 1]
    assert draw(0, 0, seed=0) == {e.path.stem: e.masks for e in examples}
    assert len(draw(seed=0, enough=5)) == 3  # two masks an image
    assert len(draw(0, 1, seed=0, enough=5)) == 5


def test_the_sample_names_what_it_leaves_out(tmp_path):
    examples = write_examples(tmp_path, 3)

    class Bad(list):
        def __getitem__(self, index):
            if index == 1:
                raise BadRecord("no masks", "second.png")
            return super().__getitem__(index)

    sample = sample_examples(Bad([*examples, examples[0]]), folder=tmp_path)
    assert list(sample.examples) == ["0", "2"]
    assert sorted(sample.problems) == ["0 occurs more than once; the first one counts", "no masks: second.png"]


class InMemory:
    def __init__(self, examples):
        self.examples = examples

    def open(self, root, dataset):
        return self.examples


def register(monkeypatch, name, examples):
    monkeypatch.setitem(registry.DATASETS, name, ZeroShotDataset(name, "", "", 0, 0, "", "", InMemory(examples)))


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    register(monkeypatch, "synthetic", write_examples(tmp_path / "data", 3))
    return SinglePointConfig(
        out=tmp_path / "out",
        data=tmp_path,
        datasets=("synthetic", "bsds500"),
        methods=("sam", "disc"),
        clicks=3,
        workers=1,
    )


def small_model(seed):
    """Any params do; drawing them with NumPy compiles nothing."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_params(SMALL, key), jax.random.key(0))
    return Sam(SMALL, jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes))


@pytest.fixture(scope="module")
def model():
    return small_model(0)


@pytest.fixture
def make_segmenter(model):
    return lambda method: Disc() if method == "disc" else SamSegmenter(model)


def only_disc(config):
    return dataclasses.replace(config, datasets=("synthetic",), methods=("disc",))


def test_model_and_baseline_run_end_to_end_and_a_missing_set_is_left_out(config, make_segmenter, capsys):
    report = run(config, make_segmenter)
    methods = report.results["methods"]
    assert set(methods) == {"sam", "disc"}
    assert set(methods["sam"]) == {"synthetic", MEAN_ROW}
    assert "bsds500 is left out" in capsys.readouterr().out
    assert report.results["missing"]["bsds500"].startswith(f"BSDS500 is not in {config.data / 'bsds500'}")
    assert "Get it from github.com/BIDS/BSDS500" in report.table
    sam = methods["sam"]["synthetic"]
    assert sam["masks"] == 6
    assert 0 <= sam["iou@3"] <= 100
    assert sam["best@1"] >= sam["iou@1"]
    low, high = sam["intervals"]["best@1"]
    assert low <= sam["best@1"] <= high
    assert f"| synthetic | sam | 6 | {sam['best@1']:.1f} [{low:.1f}, {high:.1f}] |" in report.table
    assert "| mean of the paper's 23 | SAM ViT-H |  |  | 58.1 |  |  |  | 81.3 |  | published |" in report.table
    _, lines = read_records(config.out / "sam.jsonl")
    assert np.mean([r["iou"][2] for line in lines for r in line["masks"]]) * 100 == pytest.approx(sam["iou@3"])


def test_every_data_set_counts_alike_in_the_mean(config, monkeypatch, tmp_path):
    examples = write_examples(tmp_path / "data", 3)
    register(monkeypatch, "one mask", [dataclasses.replace(examples[0], masks=examples[0].masks[:1])])
    methods = run(dataclasses.replace(config, datasets=("synthetic", "one mask"), methods=("disc",)), lambda m: Disc())
    disc = methods.results["methods"]["disc"]
    assert disc[MEAN_ROW]["iou@1"] == (disc["synthetic"]["iou@1"] + disc["one mask"]["iou@1"]) / 2
    assert (disc[MEAN_ROW]["datasets"], disc[MEAN_ROW]["masks"]) == (2, 7)


def test_an_interrupted_evaluation_goes_on_and_another_protocol_starts_anew(config):
    config = only_disc(config)
    opened = []

    class Counting(Disc):
        def open_session(self, image):
            opened.append(image)
            return super().open_session(image)

    whole = run(config, lambda method: Counting())
    path = config.out / "disc.jsonl"
    assert [p.name for p in config.out.iterdir()] == ["disc.jsonl"]
    lines = path.read_text().splitlines()
    path.unlink()
    part = config.out / "disc.part-0.jsonl"
    part.write_text("\n".join(lines[:2]) + "\n" + lines[2][:10])  # killed while it wrote the second image
    opened.clear()
    assert run(config, lambda method: Counting()).results == whole.results
    assert len(opened) == 2
    assert path.read_text().splitlines() == lines
    assert not part.exists()
    opened.clear()
    assert run(config, lambda method: Counting()).results == whole.results
    assert not opened
    path.write_text("\n".join([json.dumps({"clicks": 9}), *lines[1:]]) + "\n")
    run(config, lambda method: Counting())
    assert len(opened) == 3
    assert (config.out / "disc.jsonl.old").exists()


def test_bad_images_and_masks_are_named_and_the_rest_is_kept(config, monkeypatch, tmp_path):
    good, missing, other_size, empty = write_examples(tmp_path / "data", 4)
    missing.path.unlink()
    nothing = encode_rle(np.zeros(empty.size, bool))
    examples = [
        good,
        missing,
        dataclasses.replace(other_size, size=(7, 9), masks=(encode_rle(np.ones((7, 9), bool)),)),
        dataclasses.replace(empty, masks=(*empty.masks, nothing)),
    ]
    register(monkeypatch, "synthetic", examples)
    config = dataclasses.replace(only_disc(config), max_masks=0)

    report = run(config, lambda method: Disc())
    assert report.results["methods"]["disc"]["synthetic"]["masks"] == 4
    problems = report.results["left_out"]["disc"]["synthetic"]
    assert problems[0] == "3: mask 2 has no pixel to click"
    assert problems[1].startswith("1: image cannot be read: ")
    assert problems[2].startswith("2: masks of another size: ")
    for problem in problems:
        assert f"- disc, synthetic: {problem}" in report.table
    assert run(config, lambda method: Disc()).results == report.results  # also when it goes on


def test_a_segmenter_whose_masks_have_another_size_than_the_image_stops_the_evaluation(config, monkeypatch, tmp_path):
    register(monkeypatch, "synthetic", write_examples(tmp_path / "data", 3))

    class Small(Disc):
        def open_session(self, image):
            return super().open_session(image[:50])

    with pytest.raises(ValueError, match=r"expected two masks of one size, got \(50, ") as error:
        run(only_disc(config), lambda method: Small())
    assert not isinstance(error.value, UserError)


def test_an_evaluation_without_an_image_says_why(config, monkeypatch, tmp_path):
    (example,) = write_examples(tmp_path / "data", 1)
    example.path.unlink()
    register(monkeypatch, "synthetic", [example])
    with pytest.raises(ValueError, match="disc: no image could be evaluated; the first: 0: image cannot"):
        run(only_disc(config), lambda method: Disc())


def test_ignored_pixels_do_not_count_in_an_evaluation(tmp_path):
    example = write_examples(tmp_path, 1)[0]
    ground_truth = decode_rle(example.masks[0])
    wide = ground_truth | np.roll(ground_truth, 10, axis=1)
    half = Example(
        example.path, example.size, (encode_rle(ground_truth),), "x", ignore=encode_rle(wide & ~ground_truth)
    )
    answer = Oracle(Example(example.path, example.size, (encode_rle(wide),), "x"), "oracle")
    assert simulate(answer, half, clicks=2)[0]["iou"] == [1.0, 1.0]


def test_a_mask_without_an_error_gets_no_further_click(tmp_path):
    example = write_examples(tmp_path, 1)[0]
    ground_truth = decode_rle(example.masks[0])
    assert next_click(ground_truth, ground_truth, []) is None
    assert (
        next_click(ground_truth, ground_truth | np.roll(ground_truth, 40, 0), [], ignore=np.roll(ground_truth, 40, 0))
        is None
    )

    class Watching(Oracle):
        def segment(self, clicks):
            assert [len(click.points) for click in clicks] == [1] * len(clicks)
            return super().segment(clicks)

    assert [r["iou"] for r in simulate(Watching(example, "oracle"), example, clicks=3)] == [[1.0] * 3] * 2


def test_a_random_first_click_is_drawn_anew_for_each_mask_and_seed_and_only_the_first(tmp_path):
    example = write_examples(tmp_path, 1)[0]

    def clicks_of(rules):
        class Watching(Oracle):
            def segment(self, clicks):
                self.clicks = clicks
                return super().segment(clicks)

        watching = Watching(example, "nothing")
        simulate_clicks(watching, example, rules)
        return [click.points for click in watching.clicks]

    first = clicks_of(ClickRules(2, "random", seed=0))
    assert first == clicks_of(ClickRules(2, "random", seed=0)) != clicks_of(ClickRules(2, "random", seed=1))
    center = clicks_of(ClickRules(2))
    assert [points[0] for points in first] != [points[0] for points in center]
    assert [points[1] for points in first] == [points[0] for points in center]  # nothing was found: all is missed


def test_a_model_that_was_trained_further_is_evaluated_anew(config, model):
    config = dataclasses.replace(config, datasets=("synthetic",), methods=("sam",), clicks=1)
    first = run(config, lambda method: SamSegmenter(model))
    assert run(config, lambda method: SamSegmenter(model)).results == first.results
    other = small_model(1)
    assert SamSegmenter(other).identity != SamSegmenter(model).identity
    run(config, lambda method: SamSegmenter(other))
    header, _ = read_records(config.out / "sam.jsonl")
    assert header["segmenter"] == SamSegmenter(other).identity


def test_images_are_played_in_order_however_many_at_a_time(tmp_path):
    examples = write_examples(tmp_path, 4)
    one, many = ([p.records for p in simulate_images(Disc(), examples, ClickRules(3), workers=n)] for n in (1, 3))
    assert one == many


def test_unknown_and_missing_datasets_are_named(config, make_segmenter):
    with pytest.raises(ValueError, match="unknown dataset 'cats'"):
        run(dataclasses.replace(config, datasets=("cats",)), make_segmenter)
    with pytest.raises(FileNotFoundError, match=r"no dataset can be evaluated:\n  bsds500: BSDS500 is not in"):
        run(dataclasses.replace(config, datasets=("bsds500",)), make_segmenter)


def test_a_pixel_reached_from_clicks_of_both_kinds_goes_to_the_nearer():
    grey = np.full((10, 30, 3), 128, np.uint8)
    (masks,) = RegionGrowing().open_session(grey).segment([Clicks([(5, 5), (25, 5)], [1, 0])])
    assert masks[0][:, :15].all()
    assert not masks[0][:, 15:].any()
