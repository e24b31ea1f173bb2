"""Where a user would click: in the middle of the object, then in the middle of what is most wrong.

Reference: paper, section D.1; Sofiiuk et al. 2021 (RITM), whose rule of the largest inscribed circle this is.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float

from sam_jax.types import BACKGROUND, FOREGROUND

Click = tuple[tuple[int, int], int]
"""((x, y), label): a pixel of the original frame; FOREGROUND or BACKGROUND."""


def inscribed_radius(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Exact Euclidean distance of each pixel to the nearest one outside the region; outside the image counts.

    Squares are whole numbers: rounding them takes away OpenCV's last digits, which differ between equal distances.
    """
    padded = np.pad(region.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.sqrt(np.rint(np.square(distance, dtype=np.float64)))


def deepest_pixel(
    region: Bool[np.ndarray, "H W"], without: Sequence[tuple[int, int]] = ()
) -> tuple[tuple[int, int], float]:
    """((x, y), radius) of the pixel farthest from the region's boundary; of several, the first in reading order.

    Looks only at the rectangle around the region: a pixel's nearest one outside the region is never beyond its rim.

    Args:
        without: (x, y) of pixels that are not to be chosen. They are of the region all the same.

    Returns:
        Radius 0 where there is no pixel to choose.
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
    """The interior pixel farthest from the boundary; of several, the first in reading order.

    Args:
        ignore: pixels that are not clicked, and bound the object.

    Raises:
        ValueError: no pixel to click.
    """
    point, radius = deepest_pixel(ground_truth if ignore is None else ground_truth & ~ignore)
    if radius == 0:
        raise ValueError("expected a mask with at least one pixel to click, got an empty one")
    return point, FOREGROUND


def random_click(
    ground_truth: Bool[np.ndarray, "H W"], rng: np.random.Generator, ignore: Bool[np.ndarray, "H W"] | None = None
) -> Click:
    """Any pixel of the object, all alike.

    Raises:
        ValueError: no pixel to click.
    """
    pixels = np.flatnonzero(ground_truth if ignore is None else ground_truth & ~ignore)
    if not len(pixels):
        raise ValueError("expected a mask with at least one pixel to click, got an empty one")
    y, x = divmod(int(rng.choice(pixels)), ground_truth.shape[1])
    return (x, y), FOREGROUND


def next_click(
    ground_truth: Bool[np.ndarray, "H W"],
    predicted: Bool[np.ndarray, "H W"],
    clicked: Sequence[tuple[int, int]],
    ignore: Bool[np.ndarray, "H W"] | None = None,
) -> Click | None:
    """The pixel of the missed or the wrong region that is farthest from that region's boundary.

    Args:
        clicked: (x, y) of earlier clicks, which are not repeated.
        ignore: pixels that count neither way.

    Returns:
        A foreground click where a missed region has the strictly larger radius, else a background click; None where
        nothing is wrong but pixels that were clicked before.
    """
    missed, wrong = ground_truth & ~predicted, predicted & ~ground_truth
    if ignore is not None:
        missed, wrong = missed & ~ignore, wrong & ~ignore
    missed_point, missed_radius = deepest_pixel(missed, clicked)
    wrong_point, wrong_radius = deepest_pixel(wrong, clicked)
    if max(missed_radius, wrong_radius) == 0:
        return None
    return (missed_point, FOREGROUND) if missed_radius > wrong_radius else (wrong_point, BACKGROUND)
