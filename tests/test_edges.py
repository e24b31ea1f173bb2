"""Edges from masks against the same steps in numpy, thinning across edges, and `sam-jax eval` from image to table."""

import dataclasses
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cases.bsds import write_ground_truth
from cases.models import SMALL
from sam_jax.commands import main as cli
from sam_jax.evals import edges as edges_module
from sam_jax.evals.bsds import count_matches, score_counts
from sam_jax.evals.edge_baselines import Canny, Sobel
from sam_jax.evals.edges import EdgesConfig, SamEdges
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.ops.boxes import box_nms, mask_box
from sam_jax.ops.edges import normalize_edges, outer_boundary, sobel_magnitude, thin_edges
from sam_jax.ops.grids import point_grid
from sam_jax.predictor import SamPredictor
from sam_jax.prompting.prompts import Prompt


@pytest.fixture(scope="module")
def model() -> Sam:
    return Sam(SMALL, init_params(SMALL, jax.random.key(0)))


def make_image(h: int, w: int) -> np.ndarray:
    image = np.full((h, w, 3), 60, np.uint8)
    image[h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 220
    return image


def gradient(image: np.ndarray) -> np.ndarray:
    parts = (cv2.Sobel(image, cv2.CV_64F, *order, borderType=cv2.BORDER_REPLICATE) for order in ((1, 0), (0, 1)))
    return np.hypot(*parts)


@pytest.mark.parametrize("size", [(40, 67), (58, 30)])
def test_edges_equal_the_same_steps_in_numpy(model, size):
    image = make_image(*size)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    prompts = [Prompt(point[None], np.array([1])) for point in point_grid(9) * size[::-1]]  # 81: a batch and a bit
    logits, iou, _ = predictor.predict_prompts(prompts, multimask_output=True, return_logits=True)
    logits = logits.reshape(-1, *size)
    kept = box_nms(np.stack([mask_box(plane > 0) for plane in logits]), iou.ravel(), 0.8)
    assert 0 < len(kept) < len(logits)
    strongest = np.zeros(size)
    for plane in logits[kept].astype(np.float64):
        mask = (plane > 0).astype(np.uint8)
        boundary = (cv2.dilate(mask, np.ones((3, 3))) > 0) & (mask == 0)
        strongest = np.maximum(strongest, gradient(1 / (1 + np.exp(-plane))) * boundary)
    expected = np.asarray(thin_edges((strongest / strongest.max()).astype(np.float32)))
    found = SamEdges(model, points_per_side=9, box_nms_thresh=0.8, masks_at_once=5).detect(image)
    assert found.shape == size
    assert (expected > 0).sum() > 20
    # A pixel may stand on either side of a comparison that float32 decides.
    assert (np.abs(found - expected) > 1e-4).mean() < 2e-3


def test_sobel_and_outer_boundaries_by_hand():
    step = jnp.repeat(jnp.array([[0.0, 0, 1, 1]]), 3, 0)
    np.testing.assert_array_equal(sobel_magnitude(step), np.repeat([[0, 4, 4, 0]], 3, 0))
    np.testing.assert_array_equal(sobel_magnitude(step.T[None])[0], np.repeat([[0, 4, 4, 0]], 3, 0).T)
    mask = np.zeros((4, 5), bool)
    mask[0, 1] = True
    expected = np.zeros((4, 5), bool)
    expected[:2, :3] = True
    expected[0, 1] = False
    np.testing.assert_array_equal(outer_boundary(jnp.array(mask)), expected)
    np.testing.assert_array_equal(outer_boundary(jnp.ones((3, 3), bool)), np.zeros((3, 3), bool))
    np.testing.assert_array_equal(normalize_edges(np.array([[1.0, 3], [2, 5]])), [[0, 0.5], [0.25, 1]])
    np.testing.assert_array_equal(normalize_edges(np.ones((2, 2))), np.zeros((2, 2)))


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 120, 160])
def test_a_soft_edge_of_any_direction_becomes_a_line_where_it_is_strongest(angle):
    y, x = np.mgrid[:60, :60] - 29.7
    off = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    thinned = np.asarray(thin_edges(np.exp(-(off**2) / 8).astype(np.float32)))
    inner = (slice(8, -8),) * 2
    assert np.abs(off[inner][thinned[inner] > 0.02]).max() < 1.3
    across = 1 if abs(np.cos(np.radians(angle))) > 0.7 else 0
    counts = (thinned[inner] > 0.02).sum(across)
    crossed = counts[5:-5] if angle in (0, 90) else counts[counts > 0]
    assert len(crossed) > 20
    assert crossed.max() <= 2
    # Towards the sides of the image edges fade.
    assert thinned[0].max() == thinned[:, -1].max() == 0


@pytest.mark.parametrize("detector", [Sobel(), Canny(), Sobel(sigma=1)])
def test_the_baselines_find_the_outline_of_a_plain_object(detector):
    image = make_image(90, 120)
    edges = detector.detect(image)
    assert 0.5 < edges.max() <= 1
    mask = image[:, :, 0] > 100
    ground_truth = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
    # 0.0075 of the diagonal is a pixel here.
    assert score_counts(np.stack([count_matches(np.rint(edges * 255) / 255, ground_truth[None])])).ods > 0.8


@pytest.fixture
def config(tmp_path, model, monkeypatch) -> EdgesConfig:
    """Two images, and a file that gives the config to `sam-jax eval`."""
    (tmp_path / "images" / "test").mkdir(parents=True)
    for i, size in enumerate([(48, 64), (64, 48)]):
        image = make_image(*size)
        Image.fromarray(image).save(tmp_path / "images" / "test" / f"{i}.jpg")
        mask = image[:, :, 0] > 100
        ground_truth = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
        write_ground_truth(tmp_path / "groundTruth" / "test" / f"{i}.mat", [ground_truth, ground_truth])
    monkeypatch.setattr(edges_module, "load_model", lambda name: model)
    path = tmp_path / "config.py"
    path.write_text(
        "from sam_jax.config_file import REQUIRED\n"
        "from sam_jax.evals.edges import EdgesConfig\n"
        "get_config = lambda: EdgesConfig(REQUIRED)\n"
    )
    return EdgesConfig(out=tmp_path / "out", data=tmp_path, points_per_side=2)


def test_all_methods_end_to_end_and_nothing_is_done_twice(config, monkeypatch):
    report = config.evaluate()
    assert set(report.results) == {"sam", "Canny", "Sobel", "human"}
    assert report.results["human"]["ods"] == 1
    assert report.results["human"]["ap"] is None
    assert report.results["Canny"]["pictures"] == 2
    assert 0 < report.results["Sobel"]["ods"] <= 1
    assert "| sam | " in report.table
    assert "measured, 2 images" in report.table
    assert "| SAM ViT-H, zero-shot | 0.768 | 0.786 | 0.794 | 0.928 | published |" in report.table
    assert report.table.endswith("in-domain, not zero-shot.\n")
    assert Image.open(config.out / "curves.png").size[0] > 300
    monkeypatch.setattr(SamEdges, "detect", None)
    monkeypatch.setattr("sam_jax.evals.bsds.count_matches", None)
    assert config.evaluate() == report
    with pytest.raises(TypeError):  # another grid: other maps
        dataclasses.replace(config, points_per_side=3).evaluate()
    with pytest.raises(ValueError, match=r"unknown methods \['gPb'\]; known are \['sam', 'Sobel', 'Canny', 'human'\]"):
        dataclasses.replace(config, methods=("gPb",)).evaluate()


def test_maps_made_elsewhere_are_scored_from_the_command_line(config, tmp_path, capsys):
    maps = tmp_path / "mine"
    maps.mkdir()
    arguments = [str(tmp_path / "config.py"), "--data", str(tmp_path), "--out", str(config.out), "--maps", str(maps)]
    assert cli.main(["eval", *arguments]) == 2
    assert "2 are missing: 0, 1" in capsys.readouterr().err
    for i in range(2):
        edges = Canny().detect(np.asarray(Image.open(tmp_path / "images" / "test" / f"{i}.jpg")))
        Image.fromarray(np.rint(edges * 255).astype(np.uint8)).save(maps / f"{i}.png")
    assert cli.main(["eval", *arguments]) == 0
    table = capsys.readouterr().out
    assert "| mine | " in table
    assert "in-domain" not in table
    results = json.loads((config.out / "report.json").read_text())
    assert list(results) == ["mine"]
    by_method = dataclasses.replace(config, methods=("Canny",)).evaluate().results["Canny"]
    assert results["mine"] == by_method


@pytest.mark.parametrize("kind", ["empty", "cut", "another size", "no image", "missing", "ground truth"])
def test_one_bad_image_is_named_and_the_others_are_scored(config, kind):
    path = config.data / "images" / "test" / "0.jpg"
    if kind == "missing":
        path.unlink()
    elif kind == "another size":
        Image.new("RGB", (20, 30)).save(path)
    elif kind == "ground truth":
        (config.data / "groundTruth" / "test" / "0.mat").write_bytes(b"no MATLAB file")
    else:
        path.write_bytes({"empty": b"", "cut": path.read_bytes()[:200], "no image": b"text"}[kind])
    config = dataclasses.replace(config, methods=("Canny", "human") if kind == "ground truth" else ("Canny",))
    report = config.evaluate()
    for method in config.methods:
        assert report.results[method]["pictures"] == 1
        assert list(report.results[method]["left_out"]) == ["0"]
        assert f"- {method}, 0: " in report.table
    assert config.evaluate() == report


def test_a_config_that_is_no_evaluation_and_data_that_is_not_there_are_said(config, tmp_path, capsys):
    arguments = [str(tmp_path / "config.py"), "--data", str(tmp_path / "nowhere")]
    assert cli.main(["eval", *arguments]) == 2
    assert "expected BSDS500 ground truth in" in capsys.readouterr().err
    (tmp_path / "other.py").write_text("from sam_jax.config import SamConfig\nget_config = SamConfig\n")
    assert cli.main(["eval", str(tmp_path / "other.py")]) == 2
    assert "is no evaluation; see sam-jax eval --help" in capsys.readouterr().err
