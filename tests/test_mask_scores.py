"""Average precision and recall of masks: by hand on a few pixels, and equal to pycocotools and to what lvis says."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cases.lvis import RECORDED, SIZE, write_case
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.instances import match_image
from sam_jax.evals.intervals import RESAMPLES, draw_images, percentile_interval
from sam_jax.evals.mask_scores import (
    AREA_RANGES,
    MaskEval,
    RecallCounts,
    average_precision,
    average_precision_interval,
    count_found,
    recall_interval,
)
from sam_jax.evals.result_files import read_results
from sam_jax.ops.rle import encode_rle


def strip(start: int, stop: int, crowd: int = 0, category: int = 1) -> dict:
    """Makes an object on an image of one row of 20 pixels."""
    mask = np.zeros((1, 20), bool)
    mask[0, start:stop] = True
    rle = encode_rle(mask)
    return {"category_id": category, "segmentation": rle, "area": stop - start, "iscrowd": crowd, "score": 0.5}


def ap(objects, results, max_detections=(1, 10, 100)):
    return average_precision([MaskEval(max_detections).match(objects, results)], [1], {}, max_detections)


def test_average_precision_by_hand():
    # Two objects; results in the order of their scores: right, wrong, right with an IoU of 8/10.
    objects = [strip(0, 10), strip(10, 20)]
    results = [
        strip(0, 10) | {"score": 0.9},
        strip(4, 16) | {"score": 0.8},
        strip(10, 18) | {"score": 0.7},
    ]
    figures = ap(objects, results)
    # Precision 1 up to recall 1/2, then 2/3: at 51 and 50 of the 101 recalls, for thresholds up to 0.8 = 7 of 10.
    both, first = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert figures["AP50"] == figures["AP75"] == pytest.approx(both)
    assert figures["AP"] == pytest.approx((7 * both + 3 * first) / 10)
    assert figures["APs"] == figures["AP"]
    assert figures["APm"] is None
    assert (figures["AR@1"], figures["AR@10"]) == pytest.approx((0.5, (7 * 1 + 3 * 0.5) / 10))


def test_a_crowd_takes_any_number_of_results_and_counts_for_none():
    figures = ap([strip(0, 10), strip(10, 20, crowd=1)], [strip(0, 10), strip(11, 14), strip(15, 19)])
    assert figures["AP"] == pytest.approx(1)
    assert ap([strip(0, 10)], [strip(11, 14) | {"score": 0.9}, strip(0, 10)])["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize(("found", "expected"), [(True, 1.0), (False, 0.0)])
def test_the_truth_scores_one_and_nothing_scores_zero(tmp_path, found, expected):
    ground_truth = read_ground_truth(write_case(tmp_path)[0])
    objects = {id_: image.objects() for id_, image in ground_truth.images.items()}
    results = {id_: [o | {"score": 1.0} for o in rows] * found for id_, rows in objects.items()}
    matches = [match_image(ground_truth.images[id_], results[id_], (300,), federated=True) for id_ in objects]
    figures = average_precision(matches, ground_truth.categories, ground_truth.frequencies, (300,))
    assert set(figures) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300"}
    assert set(figures.values()) == {expected}
    recall = RecallCounts.sum(
        [count_found(objects[id_], results[id_], ground_truth.frequencies) for id_ in objects], (10, 100, 1000)
    )
    for part in ("all", "small", "medium", "large", "frequent", "common", "rare"):
        assert recall.average(part) == dict.fromkeys(("AR@10", "AR@100", "AR@1000"), expected)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_the_lvis_package(tmp_path, seed):
    expected = json.loads(RECORDED.read_text())[seed]
    ground_truth_file, result_file = write_case(tmp_path, seed=seed)
    ground_truth = read_ground_truth(ground_truth_file)
    results = read_results(result_file, ground_truth, "segmentation")
    assert ground_truth.federated
    matches = [match_image(image, results[image.id], (300,), federated=True) for image in ground_truth.images.values()]
    figures = average_precision(matches, ground_truth.categories, ground_truth.frequencies, (300,))
    for name, value in figures.items():
        assert value == pytest.approx(expected[name], abs=1e-12), name
    # The rules of a federated data set matter here.
    plain = [match_image(image, results[image.id], (300,), federated=False) for image in ground_truth.images.values()]
    assert (
        average_precision(plain, ground_truth.categories, ground_truth.frequencies, (300,))["AP"]
        < figures["AP"] - 0.005
    )


def original(
    ground_truth_file, result_file, max_detections, *, use_categories=True, keep=lambda annotation: True
) -> COCOeval:
    content = json.loads(ground_truth_file.read_text())
    content["annotations"] = [a | {"iscrowd": a.get("iscrowd", 0)} for a in content["annotations"] if keep(a)]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = content
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(result_file)), "segm")
        evaluation.params.maxDets, evaluation.params.useCats = list(max_detections), int(use_categories)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def test_average_precision_equals_pycocotools_also_with_crowds(tmp_path):
    ground_truth_file, result_file = write_case(tmp_path, seed=7)
    content = json.loads(ground_truth_file.read_text())
    content["annotations"][::4] = [a | {"iscrowd": 1} for a in content["annotations"][::4]]
    ground_truth_file.write_text(json.dumps(content))
    ground_truth = read_ground_truth(ground_truth_file)
    results = read_results(result_file, ground_truth, "segmentation")
    max_detections = (1, 2, 10)
    matches = [
        match_image(image, results[image.id], max_detections, federated=False) for image in ground_truth.images.values()
    ]
    figures = average_precision(matches, ground_truth.categories, {}, max_detections)
    precision, recall = (
        original(ground_truth_file, result_file, max_detections).eval[name] for name in ("precision", "recall")
    )
    expected = {
        "AP": precision[..., 0, -1],
        "AP50": precision[0, ..., 0, -1],
        "AP75": precision[5, ..., 0, -1],
        **{name: precision[..., i, -1] for i, name in ((1, "APs"), (2, "APm"), (3, "APl"))},
        **{f"AR@{n}": recall[..., 0, i] for i, n in enumerate(max_detections)},
    }
    assert figures == pytest.approx({name: float(v[v > -1].mean()) for name, v in expected.items()}, rel=1e-12)


def test_recall_of_proposals_equals_pycocotools_without_categories(tmp_path):
    ground_truth_file, result_file = write_case(tmp_path, num_images=20, seed=3)
    scored = [r | {"score": i / 1000} for i, r in enumerate(json.loads(result_file.read_text()))]  # no two alike
    result_file.write_text(json.dumps(scored))
    ground_truth = read_ground_truth(ground_truth_file)
    results = read_results(result_file, ground_truth, "segmentation")
    max_detections = (1, 3, 1000)
    parts = [
        count_found(image.objects(), results[image.id], ground_truth.frequencies, max_detections)
        for image in ground_truth.images.values()
    ]
    recall = RecallCounts.sum(parts, max_detections)
    expected = original(ground_truth_file, result_file, max_detections, use_categories=False).eval["recall"]
    for i, area in enumerate(AREA_RANGES):
        assert list(recall.average(area).values()) == pytest.approx(expected[:, 0, i].mean(0), rel=1e-12)
    for letter, part in (("r", "rare"), ("c", "common"), ("f", "frequent")):
        keep = lambda annotation, letter=letter: ground_truth.frequencies[annotation["category_id"]] == letter  # noqa: E731
        of_part = original(ground_truth_file, result_file, max_detections, use_categories=False, keep=keep).eval[
            "recall"
        ]
        assert list(recall.average(part).values()) == pytest.approx(of_part[:, 0, 0].mean(0), rel=1e-12)
    assert recall.objects["all"] == sum(recall.objects[part] for part in ("rare", "common", "frequent"))


def test_a_thousand_proposals_are_scored_as_by_pycocotools(tmp_path):
    ground_truth_file, result_file = write_case(tmp_path, num_images=2, seed=1)
    few = json.loads(result_file.read_text())
    rng = np.random.default_rng(0)
    many = [few[i] | {"score": float(rng.random())} for i in rng.integers(0, len(few), 1000)]
    result_file.write_text(json.dumps(many))
    ground_truth = read_ground_truth(ground_truth_file)
    results = read_results(result_file, ground_truth, "segmentation")
    recall = RecallCounts.sum(
        [count_found(image.objects(), results[image.id], {}) for image in ground_truth.images.values()], (10, 100, 1000)
    )
    expected = original(ground_truth_file, result_file, (10, 100, 1000), use_categories=False).eval["recall"]
    assert list(recall.average("all").values()) == pytest.approx(expected[:, 0, 0].mean(0), rel=1e-12)


def test_intervals_are_those_of_the_metrics_over_drawn_images(tmp_path, monkeypatch):
    ground_truth_file, result_file = write_case(tmp_path, num_images=6, seed=3)
    scored = [r | {"score": i / 1000} for i, r in enumerate(json.loads(result_file.read_text()))]  # no two alike
    result_file.write_text(json.dumps(scored))
    ground_truth = read_ground_truth(ground_truth_file)
    results = read_results(result_file, ground_truth, "segmentation")
    images = list(ground_truth.images.values())
    matches = [match_image(image, results[image.id], (1, 300), federated=True) for image in images]
    counts = [count_found(image.objects(), results[image.id], ground_truth.frequencies, (1, 3)) for image in images]
    draws = draw_images(len(images))
    assert draws.shape == (RESAMPLES, len(images))
    assert (draws.sum(1) == len(images)).all()
    draws = draws[:40]
    monkeypatch.setattr("sam_jax.evals.mask_scores.draw_images", lambda count: draws)
    monkeypatch.setattr("sam_jax.evals.intervals.draw_images", lambda count: draws)

    def repeated(items, times):
        return [item for item, n in zip(items, times, strict=True) for _ in range(n)]

    precisions = [
        average_precision(repeated(matches, times), ground_truth.categories, {}, (1, 300))["AP"] for times in draws
    ]
    expected = percentile_interval(np.array(precisions, float))
    assert average_precision_interval(matches, ground_truth.categories) == pytest.approx(expected, rel=1e-12)
    assert expected[0] < average_precision(matches, ground_truth.categories, {}, (1, 300))["AP"] < expected[1]
    for part in ("all", "large", "rare"):
        recalls = [RecallCounts.sum(repeated(counts, times), (1, 3)).average(part)["AR@3"] for times in draws]
        expected = percentile_interval(np.array(recalls, float))
        assert recall_interval(counts, part, 3) == pytest.approx(expected, rel=1e-12)


def test_objects_of_an_image_keep_the_size_of_the_file(tmp_path):
    image = next(iter(read_ground_truth(write_case(tmp_path)[0]).images.values()))
    assert all(o["segmentation"]["size"] == list(SIZE) for o in image.objects())
