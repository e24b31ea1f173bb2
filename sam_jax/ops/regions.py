"""Removes small connected regions of masks, and traces outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

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
    return join_rings(sorted((contour[:, 0].astype(np.int64) for contour in contours), key=len, reverse=True))


def join_rings(rings: Sequence[Int[np.ndarray, "_ 2"]]) -> Int[np.ndarray, "N 2"]:
    """Returns one closed polygon that goes around all rings, each visited from the nearest point of those before."""
    polygon, *others = rings
    for ring in others:
        distances = ((polygon[:, None] - ring) ** 2).sum(-1)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        polygon = np.concatenate([polygon[: i + 1], ring[j:], ring[: j + 1], polygon[i:]])
    return polygon


class Outline(NamedTuple):
    """The edge of one part of a mask: points (x, y) of closed polygons through the centres of its outermost pixels."""

    outer: Int[np.ndarray, "N 2"]
    holes: list[Int[np.ndarray, "_ 2"]]


def outlines(mask: Bool[np.ndarray, "H W"], tolerance: float = 0.0) -> list[Outline]:
    """Returns the outline of each part of a mask, the largest part first.

    Args:
        tolerance: how far a simplified outline may be from the exact one, pixels; parts keep at least one point.
    """
    contours, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(contour, tolerance, True)[:, 0].astype(np.int64) for contour in contours]
    found = []
    for i in range(len(contours)):
        _, _, child, parent = tree[0][i]
        if parent >= 0:
            continue
        holes = []
        while child >= 0:
            holes.append(simple[child])
            child = tree[0][child][0]
        found.append((cv2.contourArea(contours[i]), Outline(simple[i], holes)))
    return [outline for _, outline in sorted(found, key=lambda pair: -pair[0])]
