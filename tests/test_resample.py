"""Masks from run lengths to another resolution, against slow references."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_jax.ops.resample import resample_runs
from sam_jax.ops.rle import counts_from_rle, encode_rle, mask_from_counts


def random_mask(rng: np.random.Generator, smooth: bool) -> np.ndarray:
    values = rng.random(rng.integers(1, 40, 2))
    if smooth:
        values = cv2.GaussianBlur(values, (0, 0), 3).reshape(values.shape)
    return values > np.quantile(values, rng.random())


def paint(patch, shape) -> np.ndarray:
    canvas = np.zeros(shape, bool)
    if patch is not None:
        mask, top, left = patch
        assert mask.any(0)[[0, -1]].all()  # tight
        assert mask.any(1)[[0, -1]].all()
        canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return canvas


def overlaps(origin: float, step: float, number: int, length: int) -> np.ndarray:
    """Returns the fractions of the result's `number` pixels that lie in those of the original; the last one goes on."""
    starts = origin + step * np.arange(number)[:, None]
    ends = np.append(np.arange(1, length), 1e9)
    return np.maximum(np.minimum(starts + step, ends) - np.maximum(starts, np.arange(length)), 0) / step


@given(seed=st.integers(0, 10**6), smooth=st.booleans())
@settings(max_examples=200, deadline=None)
def test_smaller_masks_hold_the_pixels_that_are_covered_by_more_than_half(seed, smooth):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, smooth)
    H, W = mask.shape
    step = rng.uniform(1, 4)
    x, y = rng.uniform(0, 0.7 * W), rng.uniform(0, 0.7 * H)
    w, h = (max(1, int(rng.uniform(0.3, 1) * (length - start) / step + 0.5)) for length, start in ((W, x), (H, y)))
    cover = overlaps(y, step, h, H) @ mask @ overlaps(x, step, w, W).T
    result = paint(resample_runs(counts_from_rle(encode_rle(mask)), (H, W), (x, y), step, (h, w)), (h, w))
    clear = np.abs(cover - 0.5) > 1e-9
    np.testing.assert_array_equal(result[clear], cover[clear] > 0.5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_larger_masks_are_interpolated_bilinearly(seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, smooth=True)
    H, W = mask.shape
    step = rng.uniform(0.1, 0.99)
    x, y = rng.uniform(0, 0.7 * W), rng.uniform(0, 0.7 * H)
    w, h = (max(1, int(rng.uniform(0.3, 1) * (length - start) / step)) for length, start in ((W, x), (H, y)))
    columns, rows = (o + step * (np.arange(n) + 0.5) - 0.5 for o, n in ((x, w), (y, h)))

    def weights(positions: np.ndarray, length: int) -> np.ndarray:
        positions = np.clip(positions, 0, length - 1)
        return np.maximum(1 - np.abs(positions[:, None] - np.arange(length)), 0)

    cover = weights(rows, H) @ mask @ weights(columns, W).T
    result = paint(resample_runs(counts_from_rle(encode_rle(mask)), (H, W), (x, y), step, (h, w)), (h, w))
    clear = np.abs(cover - 0.5) > 0.07  # OpenCV rounds positions to a 32nd of a pixel
    np.testing.assert_array_equal(result[clear], cover[clear] > 0.5)


def test_a_mask_at_its_own_resolution_is_unchanged():
    for seed in range(50):
        mask = random_mask(np.random.default_rng(seed), smooth=seed % 2 == 0)
        result = resample_runs(counts_from_rle(encode_rle(mask)), mask.shape, (0, 0), 1.0, mask.shape)
        np.testing.assert_array_equal(paint(result, mask.shape), mask)


@given(seed=st.integers(0, 10**6), smooth=st.booleans())
@settings(max_examples=100, deadline=None)
def test_run_lengths_are_read_as_pycocotools_writes_them(seed, smooth):
    mask = random_mask(np.random.default_rng(seed), smooth)
    rle = encode_rle(mask)
    counts = counts_from_rle(rle)
    np.testing.assert_array_equal(mask_from_counts(counts, mask.shape), mask)
    np.testing.assert_array_equal(counts_from_rle(rle | {"counts": rle["counts"].encode()}), counts)
    np.testing.assert_array_equal(counts_from_rle(rle | {"counts": counts.tolist()}), counts)
    large = encode_rle(np.kron(mask, np.ones((60, 60), bool)))  # runs of many digits
    assert counts_from_rle(large)[1::2].sum() == 3600 * mask.sum()


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 3], "counts": [1, 4]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": "1P"},
        {"size": [2, 3], "counts": "é"},
        {"size": [2, 3], "counts": ""},
        {"size": [2, 3], "counts": "o" * 40},
        {"size": 6, "counts": [6]},
        {"size": [2, 3], "counts": None},
        {"size": [2, 3], "counts": [[6]]},
        {"size": [2, 3]},
        None,
    ],
)
def test_what_is_not_run_lengths_is_refused(rle):
    with pytest.raises(ValueError, match="expected"):
        counts_from_rle(rle)
