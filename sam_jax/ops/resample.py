"""Resizes masks from their run lengths, without a full-size mask in between."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int


class Patch(NamedTuple):
    """Part of a mask outside of which it is empty."""

    mask: Bool[np.ndarray, "h w"]
    top: int
    left: int


def resample_runs(
    counts: Int[np.ndarray, " R"],
    size: tuple[int, int],
    origin: tuple[float, float],
    step: float,
    shape: tuple[int, int],
) -> Patch | None:
    """Returns a window of a mask at another scale: the pixels that the mask covers by more than half.

    If the result is smaller, each pixel stands for a square of the original, and the covered part of that square is
    computed exactly from the runs, so that thin parts keep their weight, and the work grows with the outline rather
    than with the area. If it is larger, coverage is interpolated bilinearly between the original pixels. Beyond its
    sides the mask repeats its last pixels.

    Args:
        counts: run lengths in column-major order, background first.
        size: (H, W) of the mask.
        origin: (x, y) of the window's upper left corner in the original, pixels; corners of pixels are whole numbers.
        step: pixels of the original per pixel of the result.
        shape: (h, w) of the result.

    Returns:
        the part of the window outside of which it is empty; None if all of it is empty.
    """
    column, first, end = _segments(counts, size[0])
    if not len(column):
        return None
    if step >= 1:
        found = _cover(column, first, end, size, origin, step, shape)
        return None if found is None else trim_mask(found[0] > 0.5, found[1], found[2])
    # One more pixel of the original around the window, for the interpolation.
    (H, W), (x, y), (h, w) = size, origin, shape
    x0, y0 = max(int(x) - 1, 0), max(int(y) - 1, 0)
    x1, y1 = min(int(np.ceil(x + w * step)) + 1, W), min(int(np.ceil(y + h * step)) + 1, H)
    found = _cover(column, first, end, size, (x0, y0), 1.0, (y1 - y0, x1 - x0))
    if found is None:
        return None
    cover, top, left = found
    window = np.zeros((y1 - y0, x1 - x0), np.float32)
    window[top : top + cover.shape[0], left : left + cover.shape[1]] = cover
    shift = 0.5 * step - 0.5  # pixel centres lie at +0.5
    warped = cv2.warpAffine(
        window,
        np.array([[step, 0, x - x0 + shift], [0, step, y - y0 + shift]]),
        (w, h),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return trim_mask(warped > 0.5, 0, 0)


def _segments(
    counts: Int[np.ndarray, " R"], H: int
) -> tuple[Int[np.ndarray, " s"], Int[np.ndarray, " s"], Int[np.ndarray, " s"]]:
    """Cuts the runs of a mask at its columns and returns their column, first row, and row after the last."""
    borders = counts.cumsum()
    starts, ends = borders[0:-1:2], borders[1::2]
    starts, ends = starts[starts < ends], ends[starts < ends]
    from_column = starts // H
    number = (ends - 1) // H - from_column + 1
    if number.max(initial=1) == 1:
        return from_column, starts - from_column * H, ends - from_column * H
    of_run = np.repeat(np.arange(len(starts)), number)
    column = from_column[of_run] + np.arange(len(of_run)) - np.repeat(number.cumsum() - number, number)
    return column, np.maximum(starts[of_run] - column * H, 0), np.minimum(ends[of_run] - column * H, H)


def _cover(
    column: Int[np.ndarray, " s"],
    first: Int[np.ndarray, " s"],
    end: Int[np.ndarray, " s"],
    size: tuple[int, int],
    origin: tuple[float, float],
    step: float,
    shape: tuple[int, int],
) -> tuple[Float[np.ndarray, "r c"], int, int] | None:
    """Returns the coverage (0-1) of pixels of the result for step >= 1: the part that is not 0, its top and left."""
    (H, W), (x, y), (h, w) = size, origin, shape
    left = np.maximum((column - x) / step, 0)
    right = np.where(column == W - 1, w, np.minimum((column + 1 - x) / step, w))
    upper = np.maximum((first - y) / step, 0)
    lower = np.where(end == H, h, np.minimum((end - y) / step, h))
    inside = (left < right) & (upper < lower)
    if not inside.all():
        left, right, upper, lower = left[inside], right[inside], upper[inside], lower[inside]
        if not len(left):
            return None
    top, leftmost = int(upper.min()), int(left.min())
    rows, columns = int(np.ceil(lower.max())) - top + 1, int(np.ceil(right.max())) - leftmost + 1
    # A column of the original lies in one or two of the result. Along it coverage begins at `upper`, ends at `lower`:
    # in the pixel of such a border it changes by the part beyond the border, in the next by the rest; cumsum adds up.
    j = left.astype(np.int64)
    share = np.minimum(right, j + 1) - left
    border = np.concatenate([upper, lower]) - top
    i = border.astype(np.int64)
    rest = border - i
    at = i * columns + np.concatenate([j, j]) - leftmost
    signed = np.concatenate([share, -share])
    places, weights = [at, at + columns], [signed * (1 - rest), signed * rest]
    second = right - j - 1
    (wide,) = np.nonzero(second > 0)
    if len(wide):
        both = np.concatenate([wide, wide + len(j)])
        signed = np.concatenate([second[wide], -second[wide]])
        places += [at[both] + 1, at[both] + columns + 1]
        weights += [signed * (1 - rest[both]), signed * rest[both]]
    changes = np.bincount(np.concatenate(places), np.concatenate(weights), minlength=(rows + 1) * columns)
    cover = changes.reshape(-1, columns)
    if columns < 64:
        cover = cover.cumsum(0)
    else:  # ten times as fast on long rows
        for above, row in pairwise(cover):
            row += above
    return cover[: rows - 1, : columns - 1], top, leftmost


def trim_mask(mask: Bool[np.ndarray, "h w"], top: int, left: int) -> Patch | None:
    """Cuts off the empty rows and columns of a mask whose corner lies at (left, top); None if all of it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(mask, top + int(rows[0]), left + int(columns[0]))
