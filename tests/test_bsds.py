"""The boundary benchmark against slow plain references and by hand; files of others, and runs that were stopped."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.optimize import linear_sum_assignment

from cases.bsds import write_ground_truth
from sam_jax.errors import UserError
from sam_jax.evals.boundaries import COSTS_PER_PIXEL, OUTLIER_COST, match_boundaries, thin
from sam_jax.evals.bsds import (
    count_human_matches,
    count_matches,
    find_edge_maps,
    find_ground_truth,
    ods_interval,
    read_boundaries,
    read_edge_map,
    score_counts,
    score_folder,
)
from sam_jax.evals.intervals import draw_images, percentile_interval


def drawing(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def plain_thin(image: np.ndarray) -> np.ndarray:
    """Thins as Guo and Hall 1989, pixel by pixel, as their paper has it."""
    image = np.pad(image, 1)
    while True:
        before = image.copy()
        for step in range(2):
            old = image.copy()
            for y, x in np.argwhere(old):
                # p2 ... p9 of the paper: N, NE, E, SE, S, SW, W, NW.
                around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
                p2, p3, p4, p5, p6, p7, p8, p9 = (bool(old[y + dy, x + dx]) for dy, dx in around)
                c = sum(not a and (b or d) for a, b, d in ((p2, p3, p4), (p4, p5, p6), (p6, p7, p8), (p8, p9, p2)))
                n = min(
                    (p9 or p2) + (p3 or p4) + (p5 or p6) + (p7 or p8), (p2 or p3) + (p4 or p5) + (p6 or p7) + (p8 or p9)
                )
                side = (p2 or p3 or not p5) and p4 if step == 0 else (p6 or p7 or not p9) and p8
                if c == 1 and 2 <= n <= 3 and not side:
                    image[y, x] = False
        if (image == before).all():
            return image[1:-1, 1:-1]


def test_thinning_leaves_a_line_of_a_bar_and_equals_the_plain_form():
    bar = np.zeros((9, 20), bool)
    bar[3:6, 2:18] = True
    line = thin(bar[None])[0]
    assert line[4, 4:16].all()
    assert line.sum() == line[4].sum()
    rng = np.random.default_rng(0)
    for _ in range(60):
        image = rng.random(rng.integers(1, 20, 2)) < rng.choice([0.3, 0.6, 0.9])
        np.testing.assert_array_equal(thin(np.stack([image, image]))[1], plain_thin(image))


def assignment(edges: np.ndarray, ground_truth: np.ndarray, reach: float) -> tuple[float, int]:
    """Solves the original's problem as a dense one, for cost and pairs: pixels of both maps, each with an outlier."""
    mine, theirs = np.argwhere(edges), np.argwhere(ground_truth)
    distances = np.hypot(*np.moveaxis(mine[:, None] - theirs[None], -1, 0))
    outlier = np.ceil(OUTLIER_COST * reach * COSTS_PER_PIXEL)
    costs = np.full((len(mine) + len(theirs),) * 2, outlier)
    near = np.rint(distances * COSTS_PER_PIXEL)
    costs[: len(mine), : len(theirs)] = np.where(distances <= reach, near, 1e9)
    rows, columns = linear_sum_assignment(costs)
    return costs[rows, columns].sum(), int(((rows < len(mine)) & (columns < len(theirs))).sum())


def test_matching_is_an_optimum_of_the_original_problem_at_every_threshold():
    rng = np.random.default_rng(0)
    for trial in range(40):
        size, reach = rng.integers(3, 14, 2), rng.choice([1, 1.5, 2.3, 4.3])
        soft, ground_truth = rng.random(size), rng.random(size) < rng.choice([0.05, 0.2, 0.5])
        levels = (0.95, 0.9, 0.7, 0.5, 0.6, 0.3, 0.9)  # they come and go
        maps = np.stack([thin((soft >= t)[None])[0] if trial % 2 else soft >= t for t in levels])
        for edges, matched in zip(maps, match_boundaries(maps, ground_truth, reach), strict=True):
            assert not (matched & ~edges).any()
            cost, pairs = assignment(edges, ground_truth, reach)
            assert matched.sum() == pairs
            # The pixels that are matched can be, at no more than the least cost.
            outlier = np.ceil(OUTLIER_COST * reach * COSTS_PER_PIXEL)
            own, own_pairs = assignment(matched, ground_truth, reach)
            assert own_pairs == pairs
            assert own + outlier * (edges & ~matched).sum() == cost


def test_partners_are_one_to_one_near_and_the_nearest():
    ground_truth = drawing("..#......", ".........", ".........")
    edges = drawing(".#.......", "..#......", "........#")
    # Both are at a distance of 1: one of them is matched; the third pixel is too far away.
    assert match_boundaries(edges[None], ground_truth, 4.3)[0].sum() == 1
    edges = drawing("#.......#", "..#......", ".........")
    np.testing.assert_array_equal(
        match_boundaries(edges[None], ground_truth, 4.3)[0], drawing(".........", "..#......", ".........")
    )
    # A coinciding pixel gives way where that makes two pairs: 1 + 1 is less than 0 and two outliers.
    ground_truth, edges = drawing("##."), drawing(".##")
    assert match_boundaries(edges[None], ground_truth, 1)[0].sum() == 2
    assert match_boundaries(edges[None], ground_truth, 0.5)[0].sum() == 1
    with pytest.raises(ValueError, match=r"ground truth's size \(1, 3\)"):
        match_boundaries(edges, ground_truth, 1)


CROSS = drawing(*["....#......"] * 4, "###########", *["....#......"] * 3)


def test_counts_by_hand():
    # Two people: one drew the cross, one its horizontal line. Diagonal 13.6 pixels: partners coincide.
    line = np.zeros_like(CROSS)
    line[4] = True
    soft = np.where(line, 0.5, 0.25) * CROSS
    counts = count_matches(soft, np.stack([CROSS, line]))
    np.testing.assert_array_equal(counts[0], [18 + 11, 29, 18, 18])
    np.testing.assert_array_equal(counts[24], counts[0])  # at least 0.25
    np.testing.assert_array_equal(counts[25], [22, 29, 11, 11])
    np.testing.assert_array_equal(counts[50], [0, 29, 0, 0])


def test_the_truth_scores_one_nothing_scores_zero_and_so_do_people():
    perfect = np.stack([count_matches(CROSS * 1.0, CROSS[None])])
    scores = score_counts(perfect)
    assert (scores.ods, scores.ois, scores.precision, scores.recall, scores.r50) == (1, 1, 1, 1, 1)
    assert scores.ap == 0  # the original's: a curve of one recall has no area
    nothing = score_counts(np.stack([count_matches(CROSS * 0.0, CROSS[None])]))
    assert (nothing.ods, nothing.ois, nothing.ap, nothing.r50) == (0, 0, 0, 0)
    line = np.zeros_like(CROSS)
    line[4] = True
    np.testing.assert_array_equal(count_human_matches(np.stack([CROSS, line])), [[22, 29, 22, 29]])


def test_scores_by_hand():
    thresholds = np.array([0.25, 0.5, 0.75])
    one = np.array([[8, 10, 8, 16], [6, 10, 6, 8], [1, 10, 1, 1]])  # P 0.5, 0.75, 1; R 0.8, 0.6, 0.1
    other = np.array([[10, 10, 10, 10], [2, 10, 2, 2], [0, 10, 0, 0]])
    alone = score_counts(one[None], thresholds)
    p, r = 0.75, 0.6
    at_threshold = 2 * p * r / (p + r)
    steps = np.linspace(0, 1, 100)
    between = [(0.5 + 0.25 * d, 0.8 - 0.2 * d) for d in steps] + [(0.75 + 0.25 * d, 0.6 - 0.5 * d) for d in steps]
    best = max(2 * p * r / (p + r) for p, r in between)
    assert alone.ods == pytest.approx(best)
    assert alone.ods > at_threshold + 1e-3 > alone.ois  # interpolated, and not
    assert alone.ois == pytest.approx(at_threshold)
    # Precision at recalls 0.10 ... 0.80, linear between (0.1, 1), (0.6, 0.75), (0.8, 0.5); by 100.
    area = sum(1 - 0.25 * i / 50 for i in range(50)) + sum(0.75 - 0.25 * i / 20 for i in range(21))
    assert alone.ap == pytest.approx(area / 100)
    assert alone.r50 == pytest.approx(0.8)
    # Pooled: one at 0.5 and the other at 0.25, both their best.
    both = score_counts(np.stack([one, other]), thresholds)
    assert both.ois == pytest.approx(2 * (16 / 18) * (16 / 20) / (16 / 18 + 16 / 20))
    with pytest.raises(ValueError, match="at least one image"):
        score_counts(np.zeros((0, 3, 4), int))


def test_the_interval_of_ods_is_that_of_the_score_over_drawn_images(monkeypatch):
    rng = np.random.default_rng(0)
    maps, ground_truths = rng.random((5, 12, 12)), rng.random((5, 2, 12, 12)) < 0.2
    counts = np.stack([count_matches(*image) for image in zip(maps, ground_truths, strict=True)])
    draws = draw_images(len(counts))[:30]
    monkeypatch.setattr("sam_jax.evals.bsds.draw_images", lambda count: draws)
    scores = np.array([score_counts(np.repeat(counts, times, axis=0)).ods for times in draws])
    assert ods_interval(counts) == pytest.approx(percentile_interval(scores))


@pytest.fixture
def folders(tmp_path):
    """The ground truth of three images by two annotators, and noisy edge maps of it."""
    rng = np.random.default_rng(0)
    (tmp_path / "maps").mkdir()
    for i in range(3):
        ground_truths = [np.roll(CROSS, k + i, axis=1) for k in range(2)]
        write_ground_truth(tmp_path / "groundTruth" / "test" / f"{i}.mat", ground_truths)
        soft = (rng.random(CROSS.shape) * 0.7 + ground_truths[0] * 0.3) * 255
        Image.fromarray(soft.astype(np.uint8)).save(tmp_path / "maps" / f"{i}.png")
    return tmp_path


def test_files_score_alike_with_any_workers_and_again_from_what_is_kept(folders, monkeypatch):
    ground_truths = find_ground_truth(folders, "test")
    maps = find_edge_maps(folders / "maps", list(ground_truths))
    whole = score_folder(maps, ground_truths, folders / "one", {}, workers=1)
    assert whole.shape == (3, 99, 4)
    np.testing.assert_array_equal(score_folder(maps, ground_truths, folders / "two", {}, workers=2), whole)
    np.testing.assert_array_equal(
        whole[1], count_matches(read_edge_map(maps["1"]), read_boundaries(ground_truths["1"]))
    )

    counted = []
    monkeypatch.setattr("sam_jax.evals.bsds.count_matches", lambda e, t: counted.append(e) or count_matches(e, t))
    (folders / "one" / "2.json").unlink()  # stopped before it
    np.testing.assert_array_equal(score_folder(maps, ground_truths, folders / "one", {}), whole)
    assert len(counted) == 1
    Image.fromarray(CROSS.astype(np.uint8) * 255).save(maps["0"])  # another map
    again = score_folder(maps, ground_truths, folders / "one", {})
    assert len(counted) == 2
    assert (again[0] != whole[0]).any()
    np.testing.assert_array_equal(again[1:], whole[1:])
    assert set(json.loads((folders / "one" / "0.json").read_text())) == {"files", "counts"}


def test_what_is_wrong_with_files_is_said_with_their_names(folders):
    ground_truths = find_ground_truth(folders, "test")
    with pytest.raises(FileNotFoundError, match=r"groundTruth/train.*Get BSDS500 from https"):
        find_ground_truth(folders, "train")
    with pytest.raises(FileNotFoundError, match="a folder of edge maps"):
        find_edge_maps(folders / "elsewhere", ["0"])
    with pytest.raises(ValueError, match=r"each of 5 images in .*, 2 are missing: 7, 8"):
        find_edge_maps(folders / "maps", [*ground_truths, "7", "8"])
    Image.new("L", (5, 5)).save(folders / "maps" / "1.png")
    maps, failures = find_edge_maps(folders / "maps", list(ground_truths)), {}
    assert len(score_folder(maps, ground_truths, folders / "out", failures)) == 2  # the others are scored
    assert list(failures) == ["1"]
    assert "expected an edge map of the ground truth's size (8, 11) (h, w), got (5, 5)" in failures["1"]
    ground_truths["0"].write_bytes(b"no MATLAB file")
    maps["2"].unlink()
    with pytest.raises(UserError, match="scoring: none of 3 images can be scored; the first: 1: expected an edge"):
        score_folder(maps, ground_truths, folders / "out", failures)
    assert set(failures) == {"0", "1", "2"}
    Image.new("L", (11, 8)).save(maps["2"])
    Image.new("RGB", (11, 8)).save(folders / "maps" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png has mode RGB"):
        read_edge_map(folders / "maps" / "1.png")
    (folders / "maps" / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read .*1.png"):
        read_edge_map(folders / "maps" / "1.png")
    (folders / "maps" / "more").mkdir()
    Image.new("L", (11, 8)).save(folders / "maps" / "more" / "2.png")
    with pytest.raises(ValueError, match=r"one map for 2, got .*maps/2.png and .*maps/more/2.png"):
        find_edge_maps(folders / "maps", list(ground_truths))
    for bad in (CROSS * 255.0, CROSS - 1.0, np.where(CROSS, np.nan, 0)):
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            count_matches(bad, CROSS[None])
    scipy.io.savemat(folders / "other.mat", {"x": 1})
    with pytest.raises(ValueError, match=r"groundTruth.*other.mat"):
        read_boundaries(folders / "other.mat")
