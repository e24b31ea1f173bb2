"""Boxes (x0, y0, x1, y1) on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def box_nms(
    boxes: Float[np.ndarray, "N 4"],
    scores: Float[np.ndarray, " N"],
    iou_threshold: float,
) -> Int[np.ndarray, " K"]:
    """Greedy non-maximum suppression, with the arithmetic of torchvision's.

    The area of a box is (x1 - x0)(y1 - y0); a box falls when its IoU with a better one that stays is above the
    threshold; among equal scores the first comes first. The best overlap least: that is why each box that stays is
    compared only with those still in question.

    Returns:
        Indices of the boxes that stay, best first.
    """
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    boxes = np.asarray(boxes, np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        corner = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        inner = np.maximum(corner, 0).prod(-1)
        with np.errstate(invalid="ignore"):  # two boxes without area: NaN, which is not above the threshold
            overlap = inner / (areas[best] + areas[order] - inner)
        order = order[~(overlap > iou_threshold)]
    return np.array(kept, np.int64)


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "4"]:
    """(x0, y0, x1, y1) of the outermost pixels, both inclusive; zeros for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])
