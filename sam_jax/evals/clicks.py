"""Simulated clicks: first at the centre of the object, then at the centre of the largest error region.

Reference: paper, section D.1; Sofiiuk et al. 2021 (RITM), which places clicks by the largest inscribed circle.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float

from sam_jax.errors import UserError
from sam_jax.types import BACKGROUND, FOREGROUND

Click = tuple[tuple[int, int], int]
"""((x, y), label): a pixel in the original frame, and FOREGROUND or BACKGROUND."""


def inscribed_radius(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Returns the exact Euclidean distance of each pixel to the nearest pixel outside the region or the image.

    Squared distances are integers: rounding them removes OpenCV's rounding errors, so that equal distances are equal.
    """
    padded = np.pad(region.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.sqrt(np.rint(np.square(distance, dtype=np.float64)))


def deepest_pixel(
    region: Bool[np.ndarray, "H W"], without: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, int], float]:
    """Finds the pixel of a region that is farthest from its boundary; of several, the first in reading order.

    Only the bounding box of the region is computed: the nearest pixel outside the region is never beyond its border.

    Args:
        without: (x, y) of pixels that are not chosen, but still belong to the region.

    Returns:
        ((x, y), radius) of the inscribed circle; radius 0 if there is no pixel to choose.
    """
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return (0, 0), 0.0
    top, left = int(rows[0]), int(columns[0])
    radius = inscribed_radius(region[top : rows[-1] + 1, left : columns[-1] + 1])
    for x, y in without:
        if 0 <= y - top < radius.shape[0] and 0 <= x - left < radius.shape[1]:
            radius[y - top, x - left] = 0
    y, x = divmod(int(np.argmax(radius)), radius.shape[1])
    return (left + x, top + y), float(radius[y, x])


def first_click(ground_truth: Bool[np.ndarray, "H W"], ignore: Bool[np.ndarray, "H W"] | None = None) -> Click:
    """Returns a click on the pixel of the object farthest from its boundary; of several, the first in reading order.

    Args:
        ignore: pixels that are not clicked; they bound the object.

    Raises:
        ValueError: there is no pixel to click.
    """
    point, radius = deepest_pixel(ground_truth if ignore is None else ground_truth & ~ignore)
    if radius == 0:
        raise UserError("expected a mask with at least one pixel to click, got an empty one")
    return point, FOREGROUND


def random_click(
    ground_truth: Bool[np.ndarray, "H W"], rng: np.random.Generator, ignore: Bool[np.ndarray, "H W"] | None = None
) -> Click:
    """Returns a click on a pixel of the object, drawn uniformly.

    Raises:
        ValueError: there is no pixel to click.
    """
    pixels = np.flatnonzero(ground_truth if ignore is None else ground_truth & ~ignore)
    if not len(pixels):
        raise UserError("expected a mask with at least one pixel to click, got an empty one")
    y, x = divmod(int(rng.choice(pixels)), ground_truth.shape[1])
    return (x, y), FOREGROUND


def next_click(
    ground_truth: Bool[np.ndarray, "H W"],
    predicted: Bool[np.ndarray, "H W"],
    clicked: Sequence[tuple[int, int]],
    ignore: Bool[np.ndarray, "H W"] | None = None,
) -> Click | None:
    """Returns a corrective click at the centre of the largest false negative or false positive region.

    Args:
        clicked: (x, y) of earlier clicks, which are not repeated.
        ignore: pixels that count as neither right nor wrong.

    Returns:
        A foreground click if the inscribed circle of the false negatives is strictly larger, else a background click;
        None if no pixel is wrong except those clicked before.
    """
    false_negative, false_positive = ground_truth & ~predicted, predicted & ~ground_truth
    if ignore is not None:
        false_negative, false_positive = false_negative & ~ignore, false_positive & ~ignore
    fn_point, fn_radius = deepest_pixel(false_negative, clicked)
    fp_point, fp_radius = deepest_pixel(false_positive, clicked)
    if max(fn_radius, fp_radius) == 0:
        return None
    return (fn_point, FOREGROUND) if fn_radius > fp_radius else (fp_point, BACKGROUND)
