"""Removes small connected regions of masks, and traces outlines."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Int


def remove_small_regions(
    mask: Bool[np.ndarray, "H W"], min_area: int, what: Literal["holes", "islands"]
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """Fills holes, or removes islands, of less than `min_area` pixels (8-connected).

    The largest island stays if all are small, as in the official code.

    Returns:
        the mask, and whether it was changed.
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


def mask_polygon(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "N 2"]:
    """Returns one closed polygon around all parts of a mask, through the centres of their outermost pixels.

    Further parts, and the outlines of holes, are visited from the nearest point and left the same way, so that filling
    by the even-odd rule, as `cv2.fillPoly` does, gives the mask again, but for a line between parts.

    Returns:
        Points (x, y) in pixels; none for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((0, 2), np.int64)
    first, *others = sorted((contour[:, 0].astype(np.int64) for contour in contours), key=len, reverse=True)
    polygon = first
    for ring in others:
        distances = ((polygon[:, None] - ring) ** 2).sum(-1)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        polygon = np.concatenate([polygon[: i + 1], ring[j:], ring[: j + 1], polygon[i:]])
    return polygon
