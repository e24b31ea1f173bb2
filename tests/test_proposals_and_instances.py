"""Proposals and instances end to end: what is kept and gone on with, and what bad input is called."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from cases.lvis import SIZE, write_case
from cases.models import DETECTOR, SMALL
from cases.training import make_detector_config
from sam_jax import Prompt, SamAutomaticMaskGenerator, SamPredictor
from sam_jax.checkpoints import save_checkpoint
from sam_jax.evals import instances
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.evals.instances import InstancesConfig
from sam_jax.evals.proposal_baselines import Felzenszwalb
from sam_jax.evals.proposals import ProposalsConfig, SamProposals
from sam_jax.evals.result_files import read_results
from sam_jax.everything import box_masks
from sam_jax.everything.box_masks import FilledBox, SamBoxes
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.ops.rle import decode_rle, encode_rle
from sam_jax.training.detector.task import initial_params


@pytest.fixture(scope="module")
def model():
    return Sam(SMALL, init_params(SMALL, jax.random.key(0)))


@pytest.fixture
def data(tmp_path, model):
    """Annotations, results and images of a small set with LVIS's fields, and a model's file."""
    ground_truth, _ = write_case(tmp_path, num_images=3, seed=1)
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in json.loads(ground_truth.read_text())["images"]:
        pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        name = image["coco_url"].split("/")[-1]
        Image.fromarray(pixels).resize(SIZE[::-1]).save(tmp_path / "images" / "val2017" / name)
    save_checkpoint(tmp_path / "model.safetensors", model.params, SMALL)
    return tmp_path


def proposals_config(data, **changes) -> ProposalsConfig:
    config = ProposalsConfig(
        out=data / "out",
        annotations=data / "annotations.json",
        model=str(data / "model.safetensors"),
        points_per_side=3,
        workers=1,
    )
    return dataclasses.replace(config, **changes)


def instances_config(data, **changes) -> InstancesConfig:
    config = InstancesConfig(
        out=data / "out",
        annotations=data / "annotations.json",
        model=str(data / "model.safetensors"),
        images_per_batch=2,
        workers=1,
    )
    return dataclasses.replace(config, **changes)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_proposals_run_end_to_end_and_are_not_made_twice(data, monkeypatch):
    config = proposals_config(data)
    report = config.evaluate()
    assert list(report.results) == ["sam", "sam single output", "Felzenszwalb"]
    for result in report.results.values():
        assert result["pictures"] == 3
        assert 0 <= result["all"]["AR@10"] <= result["all"]["AR@1000"] <= 1
        assert result["objects"]["all"] == sum(result["objects"].get(p, 0) for p in ("frequent", "common", "rare"))
    assert "| sam single output |" in report.table
    assert not list((data / "out").rglob("*.tmp"))
    made = []
    monkeypatch.setattr(SamProposals, "propose", lambda self, images: made.append(len(images)) or [[] for _ in images])
    assert config.evaluate().results == report.results
    assert not made
    next((data / "out").glob("sam-*/10.json")).unlink()  # as if the run had been stopped
    again = dataclasses.replace(config, methods=("sam",)).evaluate().results["sam"]
    assert made == [1]
    assert again["all"]["AR@1000"] <= report.results["sam"]["all"]["AR@1000"]


def test_proposals_are_those_of_everything_mode_best_first(model):
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    found = SamProposals(model, points_per_side=3).propose([image])[0]
    records = SamAutomaticMaskGenerator(model, "proposals", points_per_side=3, output_mode="coco_rle").generate(image)
    assert [f["segmentation"] for f in found] == [r["segmentation"] for r in records]
    scores = [f["score"] for f in found]
    assert scores == sorted(scores, reverse=True)


def test_the_single_output_is_the_models_single_mask_of_each_point(model):
    image = np.random.default_rng(1).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    options = {"points_per_side": 3, "output_mode": "binary_mask", "box_nms_thresh": 1.0}
    records = SamAutomaticMaskGenerator(model, "proposals_single", **options).generate(image)
    assert len(records) == 9
    predictor = SamPredictor(model)
    predictor.set_image(image)
    for record in records:
        masks, iou, _ = predictor.predict(np.array(record["point_coords"]), np.array([1]), multimask_output=False)
        np.testing.assert_array_equal(record["segmentation"], masks[0])
        assert record["predicted_iou"] == pytest.approx(float(iou[0]), abs=1e-4)


def test_the_single_outputs_nms_ranks_at_random_by_its_seed(model):
    image = np.random.default_rng(1).integers(0, 255, (*SIZE, 3), dtype=np.uint8)

    def points(seed):
        options = {"points_per_side": 4, "box_nms_thresh": 0.3, "nms_seed": seed}
        records = SamAutomaticMaskGenerator(model, "proposals_single", **options).generate(image)
        return [record["point_coords"] for record in records]

    assert points(0) == points(0)
    assert any(points(0) != points(seed) for seed in (1, 2, 3))


def test_felzenszwalb_finds_plain_regions_and_none_twice():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[10:40, 20:60] = (200, 50, 50)
    proposals = Felzenszwalb().propose([image])[0]
    masks = [decode_rle(p["segmentation"]) for p in proposals]
    ground_truth = image[..., 0] == 200
    assert (
        max((m & ground_truth).sum() / (m | ground_truth).sum() for m in masks) > 0.7
    )  # smoothed, its edge is a region of its own
    assert len({p["segmentation"]["counts"] for p in proposals}) == len(proposals)
    assert [p["score"] for p in proposals] == sorted((p["score"] for p in proposals), reverse=True)


@pytest.mark.parametrize("trust_in_single", [-1.0, 1.0])
def test_a_box_is_asked_twice_and_the_more_confident_answer_taken(model, trust_in_single):
    head = model.params["mask_decoder"]["iou_prediction_head"]
    last = head[f"layers_{len(head) - 1}"]
    raised = last | {"bias": last["bias"].at[0].add(trust_in_single)}
    decoder = model.params["mask_decoder"] | {"iou_prediction_head": head | {f"layers_{len(head) - 1}": raised}}
    model = Sam(SMALL, model.params | {"mask_decoder": decoder})
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 60), (50, 30), (40, 60))]
    boxes = [
        np.array([[5.0, 5, 40, 30], [10, 0, 20, 39]]),
        np.zeros((0, 4)),
        np.array([[3.0, 2, 30, 35], [1, 1, 9, 9]]),
    ]
    found = SamBoxes(model, batch_size=2)
    results = found.segment(images[:2], boxes[:2]) + found.segment(images[2:], boxes[2:])
    assert [len(row) for row in results] == [2, 0, 2]
    predictor = SamPredictor(model)
    for image, row, masks in ((images[i], boxes[i], results[i]) for i in (0, 2)):
        predictor.set_image(image)
        first = predictor.predict_prompts([Prompt(box=box) for box in row])
        best = [logits[iou.argmax()] for logits, iou in zip(first.low_res_logits, first.iou_predictions, strict=True)]
        second = [Prompt(box=box, mask=mask) for box, mask in zip(row, best, strict=True)]
        refined = predictor.predict_prompts(second, multimask_output=False)
        for q, result in enumerate(masks):
            answers = [(first.iou_predictions[q].max(), first.masks[q, first.iou_predictions[q].argmax()])]
            answers += [(refined.iou_predictions[q, 0], refined.masks[q, 0])]
            iou, mask = max(answers, key=lambda answer: answer[0])
            assert (mask is answers[1][1]) == (trust_in_single > 0)
            assert np.mean(decode_rle(result["segmentation"]) != mask) < 0.002
            assert result["predicted_iou"] == pytest.approx(float(iou), abs=1e-4)
    predictor.set_image(images[0])
    first = predictor.predict_prompts([Prompt(box=box) for box in boxes[0]])
    for q, result in enumerate(SamBoxes(model, refine=False, batch_size=1).segment(images[:1], boxes[:1])[0]):
        chosen = first.masks[q, first.iou_predictions[q].argmax()]
        assert np.mean(decode_rle(result["segmentation"]) != chosen) < 0.002


def test_more_boxes_than_the_decoder_takes_at_once_keep_their_order(model, monkeypatch):
    monkeypatch.setattr(box_masks, "PROMPT_BUCKETS", (1, 4))
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    boxes = np.array([[x, 2, x + 12, 30] for x in range(6)], float)
    found = SamBoxes(model, batch_size=1)
    forwards = [result["predicted_iou"] for result in found.segment([image], [boxes])[0]]
    backwards = [result["predicted_iou"] for result in found.segment([image], [boxes[::-1]])[0]]
    assert len(set(forwards)) == 6
    assert forwards == pytest.approx(backwards[::-1], abs=1e-5)


def test_instances_from_annotated_and_from_detected_boxes_end_in_cocos_format(data, monkeypatch, capsys):
    config = instances_config(data, methods=("box",))
    report = config.evaluate()
    box = report.results["box"]
    assert box["mIoU"] > 0.5  # the objects are ellipses: pi / 4 where nothing is cut off
    for figure in ("AP", "mIoU"):
        low, high = box["intervals"][figure]
        assert low <= box[figure] <= high
        assert f"{100 * box[figure]:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in report.table
    parts = [part for part in box["by_relative_size"].values() if part["objects"]]
    assert len(parts) >= 2
    assert sum(part["objects"] for part in parts) == len(json.loads(config.annotations.read_text())["annotations"])
    assert np.average([part["mIoU"] for part in parts], weights=[part["objects"] for part in parts]) == pytest.approx(
        box["mIoU"]
    )
    merged = next((data / "out").glob("box-*.results.json"))
    ground_truth = read_ground_truth(config.annotations)
    results = read_results(merged, ground_truth, "segmentation")
    assert [len(rows) for rows in results.values()] == [
        len(image.annotations) for image in ground_truth.images.values()
    ]
    # The same masks, taken as made elsewhere, score the same, also in other processes.
    rescored = dataclasses.replace(config, results=merged, workers=2).evaluate().results[merged.stem]
    assert rescored["AP"] == report.results["box"]["AP"]

    boxes = [
        {"image_id": image.id, "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5 + a["id"] / 1000}
        for image in ground_truth.images.values()
        for a in image.annotations
    ]
    (data / "boxes.json").write_text(json.dumps([*boxes, boxes[0] | {"bbox": [5, 5, 0, 4]}]))
    detected = instances_config(
        data, boxes=data / "boxes.json", max_boxes=3, out=data / "detected", methods=instances.METHODS
    )
    report = detected.evaluate()
    assert "1 of" in capsys.readouterr().out  # the box without area
    assert list(report.results) == list(instances.METHODS)
    for method, result in report.results.items():
        (merged,) = (data / "detected").glob(f"{method.replace(' ', '_')}-*.results.json")
        found = read_results(merged, ground_truth, "segmentation")
        assert [len(rows) for rows in found.values()] == [
            min(3, len(image.annotations)) for image in ground_truth.images.values()
        ]
        assert {r["score"] for rows in found.values() for r in rows} <= {b["score"] for b in boxes}
        assert result["mIoU"] is None
    segmented = []
    monkeypatch.setattr(FilledBox, "segment", lambda self, images, boxes: segmented.append(len(images)))
    again = dataclasses.replace(detected, methods=("box",)).evaluate()
    assert again.results["box"] == report.results["box"]
    assert not segmented


@pytest.mark.slow
def test_a_detector_of_anything_and_the_model_run_end_to_end(data, monkeypatch):
    params = initial_params(make_detector_config())
    save_checkpoint(data / "detector.safetensors", params, DETECTOR)
    config = instances_config(data, detector=data / "detector.safetensors")
    with pytest.raises(ValueError, match="LVIS's categories"):
        dataclasses.replace(config, class_agnostic=True).evaluate()
    change(data / "annotations.json", lambda c: [category.pop("frequency") for category in c["categories"]])
    save_checkpoint(data / "other.safetensors", params, dataclasses.replace(DETECTOR, category_ids=(77,)))
    with pytest.raises(ValueError, match="safetensors knows 77; --class-agnostic"):
        dataclasses.replace(config, detector=data / "other.safetensors").evaluate()
    config = dataclasses.replace(config, class_agnostic=True)
    report = config.evaluate()
    assert list(report.results) == ["sam", "sam one pass", "box", "detector"]
    assert all(result["pictures"] == 3 for result in report.results.values())
    (file,) = (data / "out").glob("detector-*.json")
    ground_truth = read_ground_truth(config.annotations).as_class_agnostic()
    found = read_results(file, ground_truth, "bbox")
    (boxes,) = (data / "out").glob("box-*.results.json")
    asked = read_results(boxes, ground_truth, "segmentation")
    assert {id_: [r["score"] for r in rows] for id_, rows in asked.items()} == {
        id_: [r["score"] for r in rows] for id_, rows in found.items()
    }
    assert any(found.values())
    monkeypatch.setattr(instances, "detect_images", None)  # it is not run again
    assert config.evaluate().results == report.results


def test_what_is_found_counts_whatever_its_category_where_categories_are_left_aside(data):
    change(data / "annotations.json", lambda c: [category.pop("frequency") for category in c["categories"]])
    ground_truth = read_ground_truth(data / "annotations.json")
    results = [
        {"image_id": image.id, "category_id": 12345, "segmentation": o["segmentation"], "score": 1.0}
        for image in ground_truth.images.values()
        for o in image.objects()
    ]
    (data / "perfect.json").write_text(json.dumps(results))
    config = instances_config(data, results=data / "perfect.json")
    with pytest.raises(ValueError, match="12345"):
        config.evaluate()
    report = dataclasses.replace(config, class_agnostic=True).evaluate()
    assert report.results["perfect"]["AP"] == 1


def test_bad_images_are_named_and_the_others_scored(data):
    names = sorted(path.name for path in (data / "images" / "val2017").iterdir())
    (data / "images" / "val2017" / names[0]).unlink()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(data / "images" / "val2017" / names[1])
    report = instances_config(data, methods=("box",)).evaluate()
    assert report.results["box"]["pictures"] == 1
    left_out = report.results["box"]["left_out"]
    assert "cannot be read" in left_out[f"image 10 ({names[0]})"]
    assert "masks of another size" in left_out[f"image 11 ({names[1]})"]
    assert names[0] in report.table


def test_masks_of_another_size_than_the_truth_are_named(data):
    def shrink(annotations):
        annotations["annotations"][0]["segmentation"] = encode_rle(np.ones((7, 9), bool))

    change(data / "annotations.json", shrink)
    report = proposals_config(data, methods=("Felzenszwalb",)).evaluate()
    assert report.results["Felzenszwalb"]["left_out"] == {}
    assert "1 x masks of another size; the first: " in report.table
    assert "annotation 1 " in report.table
    config = proposals_config(data, methods=("Felzenszwalb",))
    stored = next((data / "out").glob("Felzenszwalb-*/11.json"))
    change(stored, lambda results: results[0].update(segmentation=encode_rle(np.ones((7, 9), bool))))
    left_out = config.evaluate().results["Felzenszwalb"]["left_out"]
    assert (
        "expected masks of the image's size (120, 150) (h, w), got {(7, 9): 1}"
        in left_out["image 11 (000000000011.jpg)"]
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "different ids of images .* 10"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "different ids of annotations .* 1"),
        (lambda c: c["annotations"].clear(), "annotated objects in .*, got none on 3 images"),
        (lambda c: [a.update(image_id=99) for a in c["annotations"]], "x annotation of no image of the file; .*99"),
        (lambda c: [a.update(category_id=99) for a in c["annotations"]], "x annotation of no category of .*99"),
        (lambda c: c["categories"][0].update(frequency="x"), "expected a frequency"),
        (lambda c: c.pop("categories"), "list 'categories'"),
        (lambda c: [image.pop("coco_url") for image in c["images"]], "file_name for images, number 0"),
    ],
)
def test_bad_annotations_are_named(data, edit, message):
    change(data / "annotations.json", edit)
    with pytest.raises(ValueError, match=message):
        read_ground_truth(data / "annotations.json")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r[0].update(image_id=99), "another dataset: image_id 99"),
        (lambda r: r[0].update(category_id=99), "another dataset: category_id 99"),
        (lambda r: r[1].pop("score"), "number 1 has not all"),
        (lambda r: r[1].update(score=float("nan")), "expected a number as score"),
        (
            lambda r: r[1].update(segmentation={"size": list(SIZE), "counts": "1"}),
            "run lengths cannot be read: result 1",
        ),
        (lambda r: r[1].update(segmentation=encode_rle(np.ones((5, 5), bool))), "masks of another size: result 1"),
    ],
)
def test_bad_results_are_named(data, edit, message):
    change(data / "results.json", edit)
    with pytest.raises(ValueError, match=message):
        read_results(data / "results.json", read_ground_truth(data / "annotations.json"), "segmentation")


def test_what_is_missing_or_unknown_is_named(data):
    with pytest.raises(FileNotFoundError, match="file of annotations at"):
        proposals_config(data, annotations=data / "none.json").evaluate()
    with pytest.raises(ValueError, match=r"unknown methods \['sum'\]; known are sam"):
        proposals_config(data, methods=("sum",)).evaluate()
    with pytest.raises(ValueError, match="unknown methods"):
        instances_config(data, methods=("sum",)).evaluate()
    with pytest.raises(ValueError, match="none of 3 images can be scored"):
        proposals_config(data, images=data, methods=("Felzenszwalb",)).evaluate()
