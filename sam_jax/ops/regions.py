"""Connected regions of a mask."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool


def remove_small_regions(
    mask: Bool[np.ndarray, "H W"], min_area: int, what: Literal["holes", "islands"]
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """Fills holes, or removes islands, of less than `min_area` pixels (8-connected).

    Of a mask whose islands are all small the largest stays, as in the official code.

    Returns:
        The mask, and whether it was changed.
    """
    looked_at = (mask ^ (what == "holes")).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(looked_at, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # the first is what is not looked_at
    small = areas < min_area
    if not small.any():
        return mask, False
    in_mask = np.zeros(count, bool)
    if what == "holes":
        in_mask[0] = True
        in_mask[1:] = small
    else:
        in_mask[1:] = ~small
        if small.all():
            in_mask[1 + np.argmax(areas)] = True
    return in_mask[regions], True
