"""Calls as scripts for segment_anything and transformers make them, with PyTorch tensors and nested lists."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers import SamImageProcessor, SamProcessor

from cases.efficientnet_lite import MODEL as LITE
from cases.images import make_image
from cases.models import SMALL
from sam_jax import Prompt, Sam, compat, predict_batch
from sam_jax.checkpoints import export_checkpoint, hub
from sam_jax.compat import (
    ResizeLongestSide,
    SamAutomaticMaskGenerator,
    SamPredictor,
    prompts_from_nested,
    sam_model_registry,
)
from sam_jax.modeling import init_params

IMAGE = make_image(40, 70)
BOXES = [[5, 5, 40, 30], [20, 10, 69, 39], [0, 0, 70, 40]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "sam_vit_b.pth"
    export_checkpoint(path, init_params(SMALL, jax.random.key(0)), SMALL)
    return path


@pytest.fixture(scope="module")
def sam(checkpoint):
    releases = {**hub.RELEASES, "vit_b": dataclasses.replace(hub.RELEASES["vit_b"], config=SMALL)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "RELEASES", releases)
        model = sam_model_registry["vit_b"](checkpoint=str(checkpoint))
    model.to(device="cuda")
    return model.eval()


@pytest.fixture
def predictor(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    return predictor


def test_points_boxes_and_logits_as_the_notebook_for_the_predictor_gives_them(predictor):
    point, label = np.array([[30, 20]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
    assert (masks.shape, scores.shape, logits.shape) == ((3, 40, 70), (3,), (3, 32, 32))
    best = logits[np.argmax(scores), :, :]
    masks, _, _ = predictor.predict(
        point_coords=np.array([[30, 20], [50, 30]]),
        point_labels=np.array([1, 0]),
        mask_input=best[None, :, :],
        multimask_output=False,
    )
    assert masks.shape == (1, 40, 70)
    box = np.array([5, 5, 40, 30])
    two = predictor.predict(point_coords=None, point_labels=None, box=box[None, :], multimask_output=False)
    one = predictor.predict(box=box, multimask_output=False)
    np.testing.assert_array_equal(two[2], one[2])
    with pytest.raises(ValueError, match=r"shape \(3, 4\); several boxes: predict_prompts"):
        predictor.predict(box=np.array(BOXES))


def test_boxes_in_a_batch_of_tensors_are_those_one_by_one(predictor):
    boxes = torch.tensor(BOXES, device=predictor.device)
    moved = predictor.transform.apply_boxes_torch(boxes, IMAGE.shape[:2])
    masks, scores, logits = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=moved, multimask_output=False
    )
    assert (masks.shape, scores.shape, logits.shape) == ((3, 1, 40, 70), (3, 1), (3, 1, 32, 32))
    for i, box in enumerate(BOXES):
        np.testing.assert_allclose(logits[i], predictor.predict(box=box, multimask_output=False)[2], atol=1e-4)
    refined = predictor.predict_torch(None, None, torch.tensor(moved), mask_input=torch.tensor(logits))
    assert refined[0].shape == (3, 3, 40, 70)


def test_points_in_a_batch_may_be_filled_up(predictor):
    points = np.array([[[30, 20], [50, 30]], [[10, 10], [0, 0]]])
    moved = predictor.transform.apply_coords(points, IMAGE.shape[:2])
    logits = predictor.predict_torch(torch.tensor(moved), torch.tensor([[1, 0], [1, -1]]))[2]
    np.testing.assert_allclose(logits[0], predictor.predict(points[0], [1, 0])[2], atol=1e-4)
    np.testing.assert_allclose(logits[1], predictor.predict(points[1, :1], [1])[2], atol=1e-4)


def test_several_images_pass_the_model_in_one_call(sam):
    resize = ResizeLongestSide(sam.image_encoder.img_size)

    def prepare(image):
        return torch.as_tensor(resize.apply_image(image), device=sam.device).permute(2, 0, 1).contiguous()

    images = [IMAGE, make_image(64, 33, seed=1)]
    boxes = [torch.tensor(BOXES), torch.tensor([[1, 2, 20, 60]])]
    batched_input = [
        {
            "image": prepare(image),
            "boxes": resize.apply_boxes_torch(own, image.shape[:2]),
            "original_size": image.shape[:2],
        }
        for image, own in zip(images, boxes, strict=True)
    ]
    output = sam(batched_input, multimask_output=False)
    expected = predict_batch(sam, images, [[Prompt(box=box) for box in own.tolist()] for own in boxes], False)
    for record, other in zip(output, expected, strict=True):
        assert list(record) == ["masks", "iou_predictions", "low_res_logits"]
        np.testing.assert_allclose(record["low_res_logits"], other.low_res_logits, atol=1e-4)
        assert (record["masks"] != other.masks).mean() < 1e-3


def test_every_mask_has_the_keys_of_the_notebook_for_automatic_masks(sam):
    generator = SamAutomaticMaskGenerator(
        model=sam,
        points_per_side=4,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=10,
    )
    masks = sorted(generator.generate(IMAGE), key=lambda record: record["area"], reverse=True)
    keys = {"segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"}
    assert masks
    assert all(set(record) == keys and record["segmentation"].shape == (40, 70) for record in masks)


def test_a_checkpoint_of_another_model_and_an_image_of_another_size_are_refused(checkpoint, predictor):
    with pytest.raises(ValueError, match=r"expected a checkpoint of vit_l, .* takes it as it is"):
        sam_model_registry["vit_l"](checkpoint)
    with pytest.raises(ValueError, match=r"expected an image of shape \(1, 3, 37, 64\)"):
        predictor.set_torch_image(torch.zeros(1, 3, 64, 64), (40, 70))
    with pytest.raises(ValueError, match="as many prompts of each kind"):
        predictor.predict_torch(np.zeros((2, 1, 2)), np.ones((2, 1)), np.array(BOXES))
    with pytest.raises(ValueError, match="expected an embedding of shape"):
        predictor.set_embedding(np.zeros((1, 3, 3, 8)), (40, 70))


@pytest.mark.parametrize("config", [SMALL, LITE], ids=["plain", "with finer maps"])
def test_an_embedding_that_was_kept_stands_for_its_image(config):
    sam = Sam(config, init_params(config, jax.random.key(0)))
    predictor, other = SamPredictor(sam), SamPredictor(sam)
    predictor.set_image(IMAGE)
    other.set_embedding(predictor.get_image_embedding(), predictor.original_size)
    np.testing.assert_array_equal(other.predict([[30, 20]], [1])[2], predictor.predict([[30, 20]], [1])[2])


@pytest.mark.parametrize(
    ("points", "labels", "boxes", "expected"),
    [
        ([[[45, 30]]], None, None, [([[45, 30]], [1], None)]),
        ([[[45, 30], [10, 5]]], [[1, 0]], None, [([[45, 30], [10, 5]], [1, 0], None)]),
        ([[[[45, 30]], [[10, 5]]]], [[[1], [0]]], None, [([[45, 30]], [1], None), ([[10, 5]], [0], None)]),
        (None, None, [[[5, 5, 40, 30], [1, 1, 9, 9]]], [(None, None, [5, 5, 40, 30]), (None, None, [1, 1, 9, 9])]),
        ([[[45, 30]]], [[1]], [[[5, 5, 60, 39]]], [([[45, 30]], [1], [5, 5, 60, 39])]),
    ],
)
def test_nested_prompts_mean_what_the_processor_of_transformers_makes_of_them(points, labels, boxes, expected):
    (row,) = prompts_from_nested(points, labels, boxes)
    found = [tuple(None if x is None else np.asarray(x).tolist() for x in (p.points, p.labels, p.box)) for p in row]
    assert found == expected
    processor = SamProcessor(SamImageProcessor())
    given = {"input_points": points, "input_labels": labels, "input_boxes": boxes}
    given = {name: value for name, value in given.items() if value is not None}
    theirs = processor(IMAGE, return_tensors="pt", **given)
    resize = ResizeLongestSide(1024)
    if points is not None:
        moved = [resize.apply_coords(prompt.points, IMAGE.shape[:2]) for prompt in row]
        np.testing.assert_allclose(theirs["input_points"][0], moved)
    if boxes is not None:
        np.testing.assert_allclose(theirs["input_boxes"][0], resize.apply_boxes([p.box for p in row], IMAGE.shape[:2]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got none"),
        (
            {"input_points": [[[1, 1]]], "input_boxes": [[[1, 1, 2, 2]]] * 2},
            "input_points of 1 images, input_boxes of 2",
        ),
        ({"input_labels": [[1]], "input_boxes": [[[1, 1, 2, 2]]]}, "input_labels with points alone"),
        ({"input_points": [[1, 1]]}, r"\[image\]\[point\] or \[image\]\[object\]\[point\].* got shape \(2,\)"),
        ({"input_boxes": [[1, 1, 2, 2]]}, r"list of boxes .* got shape \(4,\)"),
        ({"input_points": [[[1, 1], [2, 2]]], "input_labels": [[1]]}, "labels"),
    ],
)
def test_nested_prompts_of_other_levels_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        prompts_from_nested(**given)
