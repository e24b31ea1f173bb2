"""Where a user would click: in the middle of the object, then in the middle of what is most wrong.

Reference: paper, section D.1; RITM (Sofiiuk et al. 2021), whose rule of the largest inscribed circle this is.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float


def inscribed_radius(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """Exact Euclidean distance of each pixel to the nearest one outside the region; outside the picture counts."""
    padded = np.pad(region.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def first_click(truth: Bool[np.ndarray, "H W"]) -> tuple[tuple[int, int], int]:
    """((x, y), 1): the interior point farthest from the boundary, the first in reading order of several."""
    return _peak(inscribed_radius(truth)), 1


def next_click(
    truth: Bool[np.ndarray, "H W"],
    predicted: Bool[np.ndarray, "H W"],
    clicked: list[tuple[int, int]],
    ignore: Bool[np.ndarray, "H W"] | None = None,
) -> tuple[tuple[int, int], int]:
    """((x, y), label): the point of the missed or the wrong region that is farthest from that region's boundary.

    Args:
        clicked: earlier clicks, which are not repeated.
        ignore: pixels that count neither way.

    Returns:
        label 1 if a missed region has the strictly larger radius, else 0.
    """
    missed, wrong = truth & ~predicted, predicted & ~truth
    if ignore is not None:
        missed, wrong = missed & ~ignore, wrong & ~ignore
    missed_radius, wrong_radius = inscribed_radius(missed), inscribed_radius(wrong)
    for x, y in clicked:
        missed_radius[y, x] = wrong_radius[y, x] = 0
    label = int(missed_radius.max() > wrong_radius.max())
    return _peak(missed_radius if label else wrong_radius), label


def _peak(values: np.ndarray) -> tuple[int, int]:
    y, x = divmod(int(np.argmax(values)), values.shape[1])
    return x, y


def mask_iou(
    predicted: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], ignore: Bool[np.ndarray, "H W"] | None = None
) -> float:
    """Intersection over union outside `ignore`; two empty masks give 1."""
    if ignore is not None:
        predicted, truth = predicted & ~ignore, truth & ~ignore
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0
