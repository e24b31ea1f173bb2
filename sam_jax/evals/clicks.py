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
    """Exact Euclidean distance of each pixel to the nearest one outside the region; outside the picture counts."""
    padded = np.pad(region.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def first_click(truth: Bool[np.ndarray, "H W"], ignore: Bool[np.ndarray, "H W"] | None = None) -> Click:
    """The interior pixel farthest from the boundary; of several, the first in reading order.

    Args:
        ignore: pixels that are not clicked, and bound the object.

    Raises:
        ValueError: no pixel to click.
    """
    click = next_click(truth, np.zeros_like(truth), [], ignore)
    if click is None:
        raise ValueError("expected a mask with at least one pixel to click, got an empty one")
    return click


def next_click(
    truth: Bool[np.ndarray, "H W"],
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
    missed, wrong = truth & ~predicted, predicted & ~truth
    if ignore is not None:
        missed, wrong = missed & ~ignore, wrong & ~ignore
    missed_radius, wrong_radius = inscribed_radius(missed), inscribed_radius(wrong)
    for x, y in clicked:
        missed_radius[y, x] = wrong_radius[y, x] = 0
    label = FOREGROUND if missed_radius.max() > wrong_radius.max() else BACKGROUND
    radius = missed_radius if label == FOREGROUND else wrong_radius
    y, x = divmod(int(np.argmax(radius)), radius.shape[1])
    return ((x, y), label) if radius[y, x] > 0 else None
