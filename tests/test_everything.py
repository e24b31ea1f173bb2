"""Everything mode: its parts against plain references, its results against the official code's."""

import dataclasses
import json

import jax
import numpy as np
import pycocotools.mask
import pytest
from everything_parity import compare
from hypothesis import given, settings
from hypothesis import strategies as st

from cases.everything import BASE, CASES, RECORDED
from cases.everything import make_image as discs
from cases.models import SMALL, TRAINED
from sam_jax import MaskGeneratorConfig, Sam, SamAutomaticMaskGenerator, load_model
from sam_jax.checkpoints import save_checkpoint
from sam_jax.config import EverythingOptions
from sam_jax.engine.prefill import EverythingProposer
from sam_jax.everything.config import PRESETS
from sam_jax.everything.options import DatasetOptions, GeneratorOptions
from sam_jax.modeling import decode_masks, encode_prompts, init_params, share_image
from sam_jax.ops.boxes import box_nms, mask_box
from sam_jax.ops.grids import crop_boxes, layer_grids, point_grid
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.regions import remove_small_regions
from sam_jax.ops.rle import (
    counts_from_bits,
    counts_from_mask,
    decode_rle,
    encode_rle,
    mask_from_counts,
    rle_from_counts,
)
from sam_jax.ops.select import make_frames, padded_length, select_masks
from sam_jax.parallel.local import LocalDevices
from sam_jax.types import FOREGROUND, Prompts

# Filters that leave some of what a small model finds.
OPEN = {"points_per_side": 5, "points_per_batch": 8, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="module")
def small() -> Sam:
    return Sam(SMALL, init_params(SMALL, jax.random.key(0)))


@pytest.fixture(scope="module")
def tiny() -> Sam:
    return load_model(TRAINED)


# Grids and crops


def test_a_grid_lies_in_the_middle_of_its_cells_row_by_row():
    np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert [len(grid) for grid in layer_grids(32, 2, 2)] == [1024, 256, 64]


def test_crops_are_those_of_a_published_sa_1b_image():
    boxes, layers = crop_boxes((1500, 2000), 2, 512 / 1500)
    assert boxes[0] == (0, 0, 2000, 1500)
    assert layers == [0] + 4 * [1] + 16 * [2]
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes[1:5]} == {(1256, 1006)}
    assert [(x0, y0) for x0, y0, _, _ in boxes[5:]] == [(x, y) for x in (0, 436, 872, 1308) for y in (0, 311, 622, 933)]
    assert boxes[5] == (0, 0, 692, 567)


# Boxes


def torchvision_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            inner = (high - low).clip(0).prod()
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            if sum(areas) > inner and inner / (sum(areas) - inner) > threshold:
                break
        else:
            kept.append(int(i))
    return kept


@given(data=st.data(), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_nms_keeps_what_the_definition_keeps_equal_scores_and_empty_boxes_included(data, threshold):
    corner = st.integers(0, 12)
    boxes = data.draw(st.lists(st.tuples(corner, corner, st.integers(0, 8), st.integers(0, 8)), max_size=30))
    boxes = np.array(boxes, float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(boxes), max_size=len(boxes))), float)
    assert box_nms(boxes, scores, threshold).tolist() == torchvision_nms(boxes, scores, threshold)


# Regions


def test_small_holes_are_filled_and_small_islands_removed_across_corners():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5, 5] = mask[6, 6] = False  # one hole of 2 pixels, as corners touch
    mask[15, 15] = mask[16, 16] = True  # one island of 2
    filled, changed = remove_small_regions(mask, 3, "holes")
    assert changed
    assert filled[2:12, 2:12].all()
    assert filled.sum() == 102
    cleaned, changed = remove_small_regions(filled, 3, "islands")
    assert changed
    assert cleaned.sum() == 100
    for what in ("holes", "islands"):
        same_mask, changed = remove_small_regions(mask, 2, what)
        assert not changed
        assert (same_mask == mask).all()


def test_of_islands_that_are_all_small_the_largest_stays_and_nothing_stays_nothing():
    mask = np.zeros((10, 10), bool)
    mask[1, 1:3] = mask[5, 5:9] = True
    cleaned, changed = remove_small_regions(mask, 100, "islands")
    assert changed
    assert cleaned.sum() == 4
    assert cleaned[5, 5]
    empty = np.zeros((10, 10), bool)
    assert not remove_small_regions(empty, 100, "islands")[0].any()


# Run lengths


@given(data=st.data(), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_bits_of_a_crop_become_the_image_s_run_lengths(data, size):
    H, W = size
    x0, y0 = data.draw(st.integers(0, W - 1)), data.draw(st.integers(0, H - 1))
    w, h = data.draw(st.integers(1, W - x0)), data.draw(st.integers(1, H - y0))
    crop = np.array(data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))).reshape(h, w)
    mask = np.zeros(size, bool)
    mask[y0 : y0 + h, x0 : x0 + w] = crop
    padding = (data.draw(st.integers(0, 3)), data.draw(st.integers(1, 9)))
    bits = np.packbits(np.pad(crop.T, ((0, padding[0]), (0, padding[1]))), axis=1)
    counts = counts_from_bits(bits, size, (x0, y0))
    assert rle_from_counts(counts, size) == encode_rle(mask)
    np.testing.assert_array_equal(counts, counts_from_mask(mask))
    np.testing.assert_array_equal(mask_from_counts(counts, size), mask)
    assert counts[1::2].sum() == mask.sum()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask_box(mask).tolist() == ([columns[0], rows[0], columns[-1], rows[-1]] if mask.any() else [0, 0, 0, 0])


# Filters on the device


@given(length=st.integers(1, 20_000))
def test_lengths_are_padded_to_bytes_by_little_and_to_few_values(length):
    padded = padded_length(length)
    assert length < padded
    assert padded % 32 == 0
    assert padded <= 1.13 * length + 33
    assert padded_length(padded - 1) == padded


def plain_selection(logits, iou, valid, size, crop_box, image_size, thresholds):
    """Selects masks in the official order of steps, mask by mask; counts those that each step drops."""
    (H, W), (min_iou, min_stability, offset, max_area) = image_size, thresholds
    full = np.asarray(to_original_frame(logits.reshape(-1, *logits.shape[-2:]), size, SMALL, return_logits=True))
    found, dropped = [], np.zeros(4, int)
    for index, (plane, score) in enumerate(zip(full, iou.reshape(-1), strict=True)):
        union = (plane > -offset).sum()
        stability = (plane > offset).sum() / union if union else 0.0
        mask = plane > 0
        box = mask_box(mask)
        shifted = box + np.tile(crop_box[:2], 2)
        cut = (np.abs(shifted - crop_box) <= 20) & ~(np.abs(shifted - np.array([0, 0, W, H])) <= 20)
        if not valid[index // 3]:
            continue
        failed = [score <= min_iou, stability < min_stability, cut.any(), mask.sum() >= max_area]
        if any(failed):
            dropped[failed.index(True)] += 1
        else:
            found.append((index, score, stability, box, mask))
    return found, dropped


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), offset=st.sampled_from([0.0, 0.1, 0.5]), at_once=st.sampled_from([1, 5]))
def test_what_leaves_the_device_is_what_the_plain_steps_leave(seed, offset, at_once):
    random = np.random.default_rng(seed)
    S = SMALL.low_res_size
    # Blobs: noise that is smooth enough for masks with an inside, off centre so that boxes differ.
    y, x = np.mgrid[:S, :S]
    centres, radii = random.uniform(0, S, (2, 4, 3, 2, 1, 1)), random.uniform(0, S / 2, (2, 4, 3, 1, 1))
    logits = (radii - np.hypot(x - centres[..., 0, :, :], y - centres[..., 1, :, :])) / 8
    logits = (logits + 0.1 * random.normal(size=logits.shape)).astype(np.float32)
    iou = random.uniform(0, 1, (2, 4, 3)).astype(np.float32)
    valid = random.random((2, 4)) < 0.8
    sizes, boxes = [(60, 100), (75, 50)], [(0, 0, 100, 60), (25, 5, 75, 80)]
    images = [(60, 100), (90, 120)]
    thresholds = [(0.3, 0.5, offset, np.inf), (0.1, 0.2, offset, 1500.0)]
    frames = make_frames(sizes, boxes, images, thresholds, SMALL)
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *frames)
    result = jax.jit(select_masks, static_argnums=4)(logits, iou, valid, batch, at_once)
    row = 0
    for i in range(2):
        found, dropped = plain_selection(
            logits[i], iou[i], valid[i], sizes[i], np.array(boxes[i]), images[i], thresholds[i]
        )
        np.testing.assert_array_equal([counts[i] for counts in result.dropped], dropped)
        for index, score, stability, box, mask in found:
            assert result.source[row] == i * 12 + index
            assert result.iou_predictions[row] == score
            np.testing.assert_allclose(result.stability_scores[row], stability, atol=2e-3)
            np.testing.assert_array_equal(result.boxes[row], box)
            unpacked = np.unpackbits(np.asarray(result.bits[row]), axis=1)
            np.testing.assert_array_equal(unpacked[: mask.shape[1], : mask.shape[0]].T, mask)
            assert unpacked.sum() == mask.sum()
            row += 1
    assert result.kept == row


def test_what_an_image_s_prompts_share_may_be_computed_before_them(small):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(2, SMALL.grid_size, SMALL.grid_size, SMALL.prompt_dim)).astype(np.float32)
    shared = share_image(small.params, embeddings, SMALL)
    points = random.uniform(0, SMALL.image_size, (2, 3, 1, 2)).astype(np.float32)
    labels = np.full((2, 3, 1), FOREGROUND)
    prompts = encode_prompts(small.params, Prompts(points, labels), SMALL)
    for one, other in zip(
        decode_masks(small.params, embeddings, prompts, SMALL, shared=shared),
        decode_masks(small.params, embeddings, prompts, SMALL),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
    masks = np.zeros((2, 3, SMALL.low_res_size, SMALL.low_res_size), np.float32)
    with_masks = encode_prompts(small.params, Prompts(points, labels, masks), SMALL)
    with pytest.raises(ValueError, match="without masks"):
        decode_masks(small.params, embeddings, with_masks, SMALL, shared=shared)


# The generator


@pytest.mark.parametrize("name", CASES)
def test_the_masks_are_those_of_the_official_code(name, tiny):
    theirs = json.loads(RECORDED.read_text())[name]
    ours = SamAutomaticMaskGenerator(tiny, **BASE, **CASES[name]).generate(discs())
    assert len(theirs) > 20
    for record in theirs:  # there as floats
        record["crop_box"] = [int(x) for x in record["crop_box"]]
    result = compare(ours, theirs)
    assert result["pairs"] == len(ours) == len(theirs), "recorded with another checkpoint? see cases/everything.py"
    assert result["score"] < 1e-3
    assert result["same_fields"]
    assert result["box"] <= 1


def test_a_record_has_the_official_fields_in_every_form(tiny):
    forms = {}
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        forms[mode] = SamAutomaticMaskGenerator(tiny, **BASE | {"output_mode": mode}).generate(discs())
    assert len(forms["binary_mask"]) > 5
    for binary, runs, coco in zip(*forms.values(), strict=True):
        mask = binary["segmentation"]
        assert mask.shape == (150, 220)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, decode_rle(coco["segmentation"]))
        np.testing.assert_array_equal(
            mask, pycocotools.mask.decode(pycocotools.mask.frPyObjects(runs["segmentation"], 150, 220))
        )
        x, y, w, h = binary["bbox"]
        assert [x, y, x + w, y + h] == mask_box(mask).tolist()
        assert binary["area"] == mask.sum()
        for record in (binary, runs, coco):
            assert list(record) == [
                *("segmentation", "area", "bbox", "predicted_iou"),
                *("point_coords", "stability_score", "crop_box"),
            ]
        json.dumps(runs), json.dumps(coco)


@pytest.mark.parametrize(("mode", "per_device"), [("mesh", 2), ("pmap", 1)])
def test_many_images_on_many_devices_give_what_each_gives_alone(mode, per_device, small):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, 90, 3)).astype(np.uint8) for height in range(60, 110, 10)]
    config = MaskGeneratorConfig(**OPEN, crop_n_layers=1, output_mode="coco_rle")
    alone = SamAutomaticMaskGenerator(small, config)
    several = SamAutomaticMaskGenerator(
        small, config, devices=LocalDevices(tuple(jax.local_devices()), mode), images_per_device=per_device
    )
    assert several.batch_size == 8 * per_device
    results = several.generate_batch(images)
    assert len(results) == len(images)
    assert all(results)
    for image, records in zip(images, results, strict=True):
        expected = alone.generate(image)
        assert [r["point_coords"] for r in records] == [r["point_coords"] for r in expected]
        for one, other in zip(records, expected, strict=True):
            assert abs(one["predicted_iou"] - other["predicted_iou"]) < 1e-5
            assert abs(one["area"] - other["area"]) <= 2  # batches of another size round differently


def test_the_size_of_a_batch_of_points_changes_nothing(tiny):
    one, other = (
        SamAutomaticMaskGenerator(tiny, **BASE | {"points_per_batch": count}).generate(discs()) for count in (7, 36)
    )
    assert [r["point_coords"] for r in one] == [r["point_coords"] for r in other]
    assert max(abs(a["area"] - b["area"]) for a, b in zip(one, other, strict=True)) <= 2


def test_devices_have_more_points_to_work_at_while_the_host_collects_masks(small):
    generator = SamAutomaticMaskGenerator(small, **OPEN | {"points_per_side": 6, "points_per_batch": 9})
    events: list[str] = []

    def noted(name, function):
        def call(*arguments):
            events.append(f"{name} {sum(event.startswith(name) for event in events)}")
            return function(*arguments)

        return call

    for name in ("_segment", "_take", "_collect"):
        setattr(generator, name, noted(name, getattr(generator, name)))
    generator.generate(discs())
    assert sorted(events) == sorted(f"{name} {n}" for name in ("_segment", "_take", "_collect") for n in range(4))
    order = {event: i for i, event in enumerate(events)}
    for n in range(4):
        for later in range(n + 1, min(n + 3, 4)):
            assert order[f"_segment {later}"] < order[f"_collect {n}"]
        if n < 2:  # else the rows would wait for the points after the next
            assert order[f"_take {n}"] < order[f"_segment {n + 2}"]


def test_an_image_without_masks_is_an_empty_result_with_and_without_crops(small):
    for layers in (0, 1):
        generator = SamAutomaticMaskGenerator(
            small, **OPEN | {"pred_iou_thresh": 1.0}, crop_n_layers=layers, min_mask_region_area=10, max_masks=5
        )
        assert generator.generate(discs()) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pred_iou_thresh": 1.0}, "predicted IoU of at most 1"),
        ({"stability_score_thresh": 1.0, "stability_score_offset": 9.0}, "a stability below 1"),
        ({"max_mask_area": 0.0}, "cover 0% of the image or more"),
        ({"min_mask_region_area": 10**6, "drop_small_masks": True, "box_nms_thresh": 1.0}, "have no island of 1000000"),
    ],
)
def test_a_result_without_masks_says_what_each_filter_dropped(small, caplog, fields, reason):
    generator = SamAutomaticMaskGenerator(small, **OPEN | fields, images_per_device=2)
    explained = {}
    images = [discs()[:, :180], np.zeros((60, 70, 3), np.uint8), discs()]
    assert generator.generate_batch(images, explained.__setitem__) == [[], [], []]
    assert not caplog.records
    assert list(explained) == [0, 1, 2]
    for dropped in explained.values():
        counts = dataclasses.astuple(dropped)
        assert counts[0] == sum(counts[1:]) == 5 * 5 * 3
        assert reason in dropped.describe(generator.config)
    assert generator.generate(images[0]) == []
    (record,) = caplog.records
    assert reason in record.message
    assert "of 75 predicted masks" in record.message


def test_a_model_has_options_of_its_own_unless_a_preset_or_an_option_is_given(small, tmp_path):
    own = EverythingOptions(pred_iou_thresh=0.3, crop_n_layers=1, stability_score_offset=0.25)
    model = dataclasses.replace(small, everything=own)
    found = SamAutomaticMaskGenerator(model, pred_iou_thresh=0.5).config
    assert found == MaskGeneratorConfig(pred_iou_thresh=0.5, crop_n_layers=1, stability_score_offset=0.25)
    assert SamAutomaticMaskGenerator(model, "official").config == MaskGeneratorConfig()
    assert SamAutomaticMaskGenerator(small).config == MaskGeneratorConfig()

    path = str(tmp_path / "model.safetensors")
    save_checkpoint(path, small.params, SMALL, everything=own)
    assert load_model(path).everything == own
    expected = dataclasses.replace(MaskGeneratorConfig(output_mode="coco_rle"), **own.to_fields())
    assert GeneratorOptions(path).config() == expected
    assert GeneratorOptions(path).settings()["pred_iou_thresh"] == 0.3
    assert GeneratorOptions(path, pred_iou_thresh=0.5).config() == dataclasses.replace(expected, pred_iou_thresh=0.5)
    assert GeneratorOptions(path, preset="official").config() == MaskGeneratorConfig(output_mode="coco_rle")
    dataset = DatasetOptions(path).config()  # the paper's settings, with the model's in place of them
    assert dataset == dataclasses.replace(PRESETS["paper"], output_mode="coco_rle", **own.to_fields())
    assert DatasetOptions("vit_h").config() == dataclasses.replace(PRESETS["paper"], output_mode="coco_rle")
    assert EverythingProposer(model, "m")._generator.config == dataclasses.replace(
        expected, min_mask_region_area=100, drop_small_masks=True, max_mask_area=0.95
    )


def test_own_grids_ask_where_they_say(small):
    grids = (np.array([[0.5, 0.5], [0.1, 0.9]]),)
    records = SamAutomaticMaskGenerator(
        small, point_grids=grids, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0
    ).generate(discs())
    assert len(records) == 6
    assert {tuple(record["point_coords"][0]) for record in records} == {(110.0, 75.0), (22.0, 135.0)}


def test_presets_are_the_published_settings():
    assert PRESETS["official"] == MaskGeneratorConfig()
    assert (PRESETS["official"].pred_iou_thresh, PRESETS["official"].stability_score_thresh) == (0.88, 0.95)
    assert [len(grid) for grid in PRESETS["paper"].grids()] == [1024, 256, 64]
    assert len(PRESETS["proposals"].grids()[0]) == 64 * 64


def test_proposals_are_ranked_by_the_mean_of_confidence_and_stability_and_cut(tiny):
    records = SamAutomaticMaskGenerator(tiny, "proposals", points_per_side=6, max_masks=12).generate(discs())
    means = [record["predicted_iou"] + record["stability_score"] for record in records]
    assert len(records) == 12
    assert means == sorted(means, reverse=True)


def test_masks_of_nearly_the_whole_image_and_small_ones_can_be_dropped(tiny):
    everything = SamAutomaticMaskGenerator(tiny, **BASE).generate(discs())
    median = float(np.median([record["area"] for record in everything]))
    large = SamAutomaticMaskGenerator(tiny, **BASE, max_mask_area=median / (150 * 220)).generate(discs())
    assert large
    assert all(record["area"] < median for record in large)
    cleaned = SamAutomaticMaskGenerator(tiny, **BASE, min_mask_region_area=int(median)).generate(discs())
    dropped = SamAutomaticMaskGenerator(tiny, **BASE, min_mask_region_area=int(median), drop_small_masks=True).generate(
        discs()
    )
    assert any(record["area"] < int(median) for record in cleaned)
    assert dropped
    assert all(record["area"] >= int(median) for record in dropped)


# Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"point_grids": (np.array([[0.5, 1.2]]),)}, r"in \[0, 1\]"),
        ({"point_grids": (np.zeros((3, 3)),)}, "shape"),
        ({"point_grids": (np.zeros((0, 2)),)}, "at least one point"),
        ({"point_grids": (np.array([[0.5, np.nan]]),)}, r"in \[0, 1\]"),
        ({"point_grids": (np.array([[0.5, 0.5]]),), "crop_n_layers": 1}, "2 point_grids"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"points_per_side": 0}, "points_per_side to be a whole number from 1"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh to be a number from 0 to 1"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh to be a number from 0 to 1"),
        ({"stability_score_offset": -1.0}, "stability_score_offset"),
        ({"box_nms_thresh": float("nan")}, "box_nms_thresh to be a number from 0 to 1"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio to be a number from 0 to 0.999"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 4}, "lower crop_n_layers"),
        ({"output_mode": "png"}, "output_mode"),
        ({"images_per_device": 0}, "images_per_device"),
    ],
)
def test_a_setting_out_of_its_range_is_named(fields, message, small):
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(small, **fields)


def test_wrong_types_say_what_to_pass(small):
    with pytest.raises(TypeError, match="got str 'small'; load_model"):
        SamAutomaticMaskGenerator("small")
    with pytest.raises(TypeError, match=r"got int 32; give fields by name, such as points_per_side=32"):
        SamAutomaticMaskGenerator(small, 32)
    with pytest.raises(TypeError, match=r"sam_jax\.read_image"):
        SamAutomaticMaskGenerator(small).generate("photo.jpg")


def test_an_unknown_preset_or_field_is_named(small):
    with pytest.raises(ValueError, match="official, paper, proposals"):
        SamAutomaticMaskGenerator(small, "fast")
    with pytest.raises(TypeError, match="points_per_sied"):
        SamAutomaticMaskGenerator(small, points_per_sied=3)


def test_an_image_too_small_for_its_crops_is_named_before_anything_is_computed(small):
    with pytest.raises(ValueError, match=r"3 x 2 pixels is too small for 3 layers"):
        SamAutomaticMaskGenerator(small, **OPEN | {"points_per_side": 8}, crop_n_layers=3).generate(
            np.zeros((2, 3, 3), np.uint8)
        )
    assert isinstance(SamAutomaticMaskGenerator(small, **OPEN).generate(np.zeros((1, 1, 3), np.uint8)), list)


def test_a_mode_of_many_devices_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'mesh' or 'pmap'"):
        LocalDevices(tuple(jax.local_devices()), "tpu")
