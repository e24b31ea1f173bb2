"""ViTDet: what detectron2 computes, from its files; and that the static-shape parts are exact."""

import dataclasses
import functools
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cases.vitdet import CASES, PRETRAINING, SIZES, SMALL, make_images, random_state, summary
from sam_jax.checkpoints import DETECTOR, expected_shapes, load_checkpoint, params_from_state, save_checkpoint
from sam_jax.checkpoints.detector import POSITIONS, detectron2_shapes, guess_config
from sam_jax.commands import main as cli
from sam_jax.detection.boxes import decode_boxes, encode_boxes, pairwise_iou
from sam_jax.detection.config import COCO_IDS, DETECTORS, DetectorConfig
from sam_jax.detection.detector import extract_features, find_objects, score_anchors, select_proposals
from sam_jax.detection.nms import boxes_that_stay, pick_best
from sam_jax.detection.results import paste_mask
from sam_jax.detection.roi_align import crop_masks, most_cells, pool_boxes
from sam_jax.modeling import normalize_images
from sam_jax.ops.boxes import box_nms
from sam_jax.ops.rle import decode_rle

RECORDED = json.loads((Path(__file__).parent / "data" / "vitdet_detectron2.json").read_text())


@functools.cache
def frames() -> tuple[np.ndarray, np.ndarray]:
    side = SMALL.encoder.image_size
    padded = [np.pad(x, ((0, side - x.shape[0]), (0, side - x.shape[1]), (0, 0))) for x in make_images()]
    return np.stack(padded), np.array(SIZES)


@functools.cache
def first_half():
    """Returns params, maps and proposals, which are the same in all cases."""
    params = params_from_state(random_state(SMALL), SMALL, "detectron2")

    @jax.jit
    def run(params, pixels, sizes):
        maps = extract_features(params, normalize_images(pixels, sizes, SMALL.encoder), SMALL)
        scored = score_anchors(params, maps, SMALL, dtype=jnp.float32)
        return maps, select_proposals(*scored, sizes, SMALL, SMALL.pre_nms)

    return run(params, *frames())


# Recorded by benchmarks/vitdet_parity.py, which says how far each part is: boxes 2e-4 pixels, scores 3e-6.


def test_maps_and_proposals_are_detectron2s():
    maps, proposals = jax.device_get(first_half())
    ours = summary(list(maps), [proposals.boxes[i][proposals.valid[i]] for i in range(2)], [])
    for recorded in RECORDED.values():
        np.testing.assert_allclose(ours["maps"], recorded["maps"], atol=2e-5)
        for i in range(2):
            np.testing.assert_allclose(ours["proposals"][i], recorded["proposals"][i], atol=2e-3)


@pytest.mark.parametrize("case", ["mask_rcnn", "cascade_lvis"])  # one head and softmax, three and sigmoid
def test_detections_are_detectron2s(case):
    config = CASES[case]
    params = params_from_state(random_state(config), config, "detectron2")
    found = jax.jit(functools.partial(find_objects, config=config))(params, *first_half(), frames()[1])
    found = jax.device_get(found)
    for i, b in enumerate(RECORDED[case]["detections"]):
        names = ("boxes", "scores", "classes", "masks")
        a = summary([], [], [{name: getattr(found, name)[i][found.valid[i]] for name in names}])["detections"][0]
        assert len(b["boxes"]) > 10
        np.testing.assert_array_equal(a["classes"], b["classes"])
        np.testing.assert_allclose(a["boxes"], b["boxes"], atol=2e-3)
        np.testing.assert_allclose(a["scores"], b["scores"], atol=2e-5)
        np.testing.assert_allclose(a["masks"], b["masks"], atol=1e-4)


def slow_roi_align(values: np.ndarray, box: np.ndarray, bins: int) -> np.ndarray:
    """Pools a box, in cells, from a map (h, w, C) sample by sample, as in the definition."""
    h, w, C = values.shape
    x0, y0, x1, y1 = box - np.float32(0.5)
    step_x, step_y = (x1 - x0) / np.float32(bins), (y1 - y0) / np.float32(bins)
    nx, ny = int(np.ceil(step_x)), int(np.ceil(step_y))
    pooled = np.zeros((bins, bins, C))
    for p, q in np.ndindex(bins, bins):
        for i, j in np.ndindex(ny, nx):
            y, x = y0 + (p + (i + 0.5) / ny) * step_y, x0 + (q + (j + 0.5) / nx) * step_x
            y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
            top, left = min(int(y), h - 1), min(int(x), w - 1)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = y - top, x - left
            above = (1 - b) * values[top, left] + b * values[top, right]
            below = (1 - b) * values[bottom, left] + b * values[bottom, right]
            pooled[p, q] += ((1 - a) * above + a * below) / (nx * ny)
    return pooled


def test_roi_align_is_exact_for_small_large_and_long_boxes_on_every_map():
    config, rng = SMALL, np.random.default_rng(3)
    maps = [rng.normal(size=(2, side, side, 3)).astype(np.float32) for side in config.sides[:4]]
    lengths = np.exp(rng.uniform(np.log(1), np.log(160), (2, 12, 2)))
    corners = rng.uniform(0, 1, (2, 12, 2)) * (160 - lengths)
    boxes = np.concatenate([corners, corners + lengths], -1)
    boxes[0, :6] = [
        (0, 0, 160, 160),
        (0, 3.2, 160, 12),
        (77.7, 0, 87.3, 160),
        (8, 8, 40, 24),
        (159, 159, 160, 160),
        (5, 5, 5, 9),
    ]
    boxes = boxes.astype(np.float32)
    pooled = jax.jit(functools.partial(pool_boxes, config=config, bins=7))(maps, boxes)
    seen = set()
    for b, r in np.ndindex(2, 12):
        x0, y0, x1, y1 = boxes[b, r]
        level = int(np.clip(np.floor(2 + np.log2(np.sqrt((x1 - x0) * (y1 - y0)) / config.box_size + 1e-8)), 0, 3))
        expected = slow_roi_align(maps[level][b], boxes[b, r] / np.float32(config.strides[level]), 7)
        np.testing.assert_allclose(pooled[b, r], expected, atol=3e-5)
        seen.add(level)
    assert seen == {0, 1, 2, 3}
    assert not pooled[0, 5].any()
    assert most_cells(config) < 40 * 40  # a static bound that is worth having


def test_a_mask_is_pooled_by_the_same_rule():
    mask = np.random.default_rng(0).uniform(size=(20, 30)).astype(np.float32)
    box = np.array([3.3, 2.0, 27.5, 18.7], np.float32)
    expected = slow_roi_align(mask[..., None], box, 28)[..., 0]
    np.testing.assert_allclose(crop_masks(mask[None], box[None], 28)[0], expected, atol=1e-5)


@jax.jit
def stays(boxes, valid):
    return boxes_that_stay(boxes, valid, 0.5)


@jax.jit
def pick(boxes, scores):
    return pick_best(boxes, scores, 0.5, 20)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3.0))
def test_suppression_is_the_sequential_one(seed, crowding):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 30, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 20 * crowding, (40, 2))], -1).astype(np.float32)
    scores = rng.permutation(40).astype(np.float32)
    order = np.argsort(-scores)
    boxes, scores, valid = boxes[order], scores[order], rng.uniform(size=40) < 0.8
    expected = np.flatnonzero(valid)[box_nms(boxes[valid], scores[valid], 0.5)]
    np.testing.assert_array_equal(np.flatnonzero(stays(boxes, valid)), expected)
    # The same boxes in three classes, and one box for all classes.
    classes = rng.integers(0, 3, 40)
    table = np.full((40, 3), -np.inf, np.float32)
    table[np.arange(40)[valid], classes[valid]] = scores[valid]
    kept = [np.flatnonzero(valid & (classes == k)) for k in range(3)]
    kept = np.concatenate([where[box_nms(boxes[where], scores[where], 0.5)] for where in kept])
    expected = kept[np.argsort(-scores[kept])][:20]
    for given_boxes in (boxes[:, None], np.repeat(boxes[:, None], 3, 1)):
        r, k, found = pick(given_boxes, table)
        real = np.isfinite(found)
        np.testing.assert_array_equal(r[real], expected)
        np.testing.assert_array_equal(k[real], classes[expected])


def test_boxes_go_to_deltas_and_back():
    rng = np.random.default_rng(0)
    a, b = np.sort(rng.uniform(0, 100, (2, 9, 2, 2)).astype(np.float32), 2).reshape(2, 9, 4)
    deltas = encode_boxes(b, a, (10.0, 5.0))
    np.testing.assert_allclose(decode_boxes(deltas, a, (10.0, 5.0)), b, rtol=2e-4, atol=1e-3)
    assert float(pairwise_iou(a, a).diagonal().min()) == 1


def test_a_mask_is_pasted_as_detectron2_does():
    mask = np.random.default_rng(0).uniform(size=(28, 28)).astype(np.float32)
    box, size = (12.3, -4.0, 57.9, 33.1), (50, 70)
    x0, y0, x1, y1 = box
    ys, xs = (np.arange(n) + 0.5 for n in size)
    grid = torch.from_numpy(np.stack(np.meshgrid((xs - x0) / (x1 - x0) * 2 - 1, (ys - y0) / (y1 - y0) * 2 - 1), -1))
    expected = (
        torch.nn.functional.grid_sample(torch.from_numpy(mask)[None, None].double(), grid[None], align_corners=False)[
            0, 0
        ]
        >= 0.5
    )
    pasted = paste_mask(mask, box, size)
    assert 100 < pasted.sum() < 1400
    np.testing.assert_array_equal(pasted, expected.numpy())


# Files


@pytest.fixture(scope="module")
def state():
    return random_state(SMALL)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2s_pickles_give_what_their_arrays_hold(state, protocol, tmp_path):
    path = tmp_path / "model_final.pkl"
    extra = {"pixel_mean": np.zeros((3, 1, 1), np.float32)}
    path.write_bytes(pickle.dumps({"model": OrderedDict(state | extra), "__author__": "x"}, protocol=protocol))
    params, config = load_checkpoint(path, DETECTOR, SMALL)
    assert config == SMALL
    expected = params_from_state(state, SMALL, "detectron2")
    jax.tree.map(np.testing.assert_array_equal, params, expected)


class Harmful:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_pickle_that_asks_for_anything_else_is_refused_and_not_run(state, tmp_path):
    target = tmp_path / "was_run"
    for name, content in {
        "call.pkl": pickle.dumps({"model": state, "extra": Harmful(str(target))}),
        "protocol0.pkl": pickle.dumps({"model": {"a": Harmful(str(target))}}, protocol=0),
        "objects.pkl": pickle.dumps({"model": {"a": np.array([{}, []], object)}}),
        "numbers.pkl": pickle.dumps({"model": {"a": 3}}),
        "list.pkl": pickle.dumps([1, 2]),
        "cut.pkl": pickle.dumps({"model": state})[:1000],
        "table.pkl": b"\x80\x02}r\xff\xff\xff\x3f.",  # an object with the number 2**30 - 1
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name, DETECTOR, SMALL)
    assert not target.exists()
    with pytest.raises(ValueError, match=r"posix\.mkdir|nt\.mkdir"):
        load_checkpoint(tmp_path / "call.pkl")


def test_all_tensors_that_do_not_fit_are_named_at_once(state, tmp_path):
    bad = dict(state)
    del bad["roi_heads.mask_head.deconv.weight"]
    bad["backbone.net.norm.weight"] = np.zeros(3, np.float32)
    bad["roi_heads.box_head.fc1.weight"] = np.zeros((2, 2), np.float32)
    bad[POSITIONS] = np.zeros((1, 7, 32), np.float32)
    path = tmp_path / "detector.pth"
    torch.save({"model": {name: torch.from_numpy(value) for name, value in bad.items()}}, path)
    with pytest.raises(ValueError, match=r"missing roi_heads\.mask_head\.deconv\.weight") as error:
        load_checkpoint(path, DETECTOR, SMALL)
    for part in ("extra backbone.net.norm.weight", "roi_heads.box_head.fc1.weight has shape (2, 2)", POSITIONS):
        assert part in str(error.value)


def test_our_own_file_gives_back_params_and_config(state, tmp_path):
    params = params_from_state(state, SMALL, "detectron2")
    save_checkpoint(tmp_path / "a.safetensors", params, SMALL)
    loaded, config = load_checkpoint(tmp_path / "a.safetensors")
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(ValueError, match="does not fit model 'small'"):
        save_checkpoint(tmp_path / "b.safetensors", {"pyramid": params["pyramid"]}, SMALL)


@pytest.mark.parametrize("name", ["mask_rcnn_vitdet_b", "cascade_mask_rcnn_vitdet_h_lvis"])
def test_published_sizes_are_known_by_their_shapes(name):
    config = DETECTORS[name]
    shapes = detectron2_shapes(config)
    state = {tensor: np.broadcast_to(np.float32(0), shape) for tensor, shape in shapes.items() if "mlp" not in tensor}
    with pytest.raises(ValueError, match=f"model {name!r}") as error:  # and nothing but those is missing
        params_from_state(state, guess_config({tensor: x.shape for tensor, x in state.items()}, name), "detectron2")
    assert str(error.value).count("\n") == sum("mlp" in tensor for tensor in shapes)
    assert sum(int(np.prod(shape)) for shape in expected_shapes(config).values()) > 1e8
    assert DetectorConfig.from_json(config.to_json()) == config
    assert len(COCO_IDS) == 80


# The command


@pytest.fixture(scope="module")
def detector(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "small.safetensors"
    save_checkpoint(path, params_from_state(state, SMALL, "detectron2"), SMALL)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_detect_writes_a_coco_result_file_and_names_images_that_it_cannot_read(detector, tmp_path, capsys):
    images = [{"id": 70 + i, "file_name": f"{i}.png"} for i in range(3)]
    annotations = tmp_path / "annotations" / "set.json"
    annotations.parent.mkdir()
    (tmp_path / "images").mkdir()
    annotations.write_text(json.dumps({"images": images, "annotations": []}))
    for i, image in enumerate(make_images()):
        Image.fromarray(image).resize((image.shape[1] * 2, image.shape[0] * 2)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "2.png").write_bytes(b"not an image")
    out = tmp_path / "new" / "results.json"
    assert run("detect", annotations, "--model", detector, "--out", out, "--batch", 2) == 1
    printed = capsys.readouterr()
    assert "2.png" in printed.err
    assert [path.name for path in out.parent.iterdir()] == ["results.json"]
    results = json.loads(out.read_text())
    assert {r["image_id"] for r in results} == {70, 71}
    assert {r["category_id"] for r in results} <= set(SMALL.category_ids)
    for result in results:
        x, y, w, h = result["bbox"]
        height, width = (2 * length for length in SIZES[result["image_id"] - 70])
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 1e-6
        assert y + h <= height + 1e-6
        mask = decode_rle(result["segmentation"])
        assert mask.shape == (height, width)
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert columns.min() >= x - w / 28 - 1
            assert rows.max() <= y + h + h / 28 + 1
    assert f"{len(results)} objects on 2 images" in printed.out
    # A folder: the file's name is in the entries.
    again = tmp_path / "again.json"
    (tmp_path / "images" / "2.png").unlink()
    arguments = ("--model", detector, "--out", again, "--boxes-only", "--batch", 2)
    assert run("detect", tmp_path / "images", *arguments) == 0
    entries = json.loads(again.read_text())
    assert [e["bbox"] for e in entries] == [r["bbox"] for r in results]
    assert {e["file_name"] for e in entries} == {"0.png", "1.png"}
    assert not any("segmentation" in e for e in entries)
    capsys.readouterr()
    assert run("detect", tmp_path / "images", *arguments, "--min-score", "1") == 0
    printed = capsys.readouterr().out
    assert "0 objects on 2 images" in printed
    assert "no object has a score above 1; a lower --min-score lets more through" in printed


def test_detect_says_what_is_wrong(detector, tmp_path, capsys):
    assert run("detect", tmp_path / "nothing.json", "--model", detector) == 2
    (tmp_path / "a.json").write_text("[]")
    assert run("detect", tmp_path / "a.json", "--model", detector) == 2
    assert run("detect", tmp_path / "a.json", "--model", tmp_path / "none.pkl") == 2
    assert "nothing.json" in capsys.readouterr().err


def test_a_pickle_is_converted_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DETECTORS, "narrow", dataclasses.replace(SMALL, name="narrow"))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": random_state(SMALL)}))
    assert run("convert", tmp_path / "a.pkl", tmp_path / "b.safetensors") == 0
    assert load_checkpoint(tmp_path / "b.safetensors")[1].name == "narrow"
    assert run("convert", tmp_path / "a.pkl", tmp_path / "b.safetensors") == 2
    assert run("convert", tmp_path / "a.pkl", tmp_path / "b.pth") == 2
    assert PRETRAINING[-1] == SMALL.encoder.dim
