"""Boxes (x0, y0, x1, y1) on the host."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Int, Real

ZOOM_MARGIN = 3  # sides of a zoomed box in its window
ZOOM_SIDE = 64  # shortest side of a window, pixels; nearer, an image is only blurred


def box_nms(
    boxes: Real[np.ndarray, "N 4"],
    scores: Real[np.ndarray, " N"],
    iou_threshold: float,
) -> Int[np.ndarray, " K"]:
    """Returns the indices of the boxes that greedy non-maximum suppression keeps, best first.

    The arithmetic is torchvision's, in float32: the area of a box is (x1 - x0)(y1 - y0), a box is dropped when its IoU
    with a better one that is kept is above the threshold, and among equal scores the first comes first.

    Args:
        boxes: (x0, y0, x1, y1) in any unit.
        scores: higher is better.
        iou_threshold: from 0 to 1.
    """
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    boxes = np.asarray(boxes, np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):  # a box that is kept is compared with the undecided ones alone, which soon are few
        best, order = order[0], order[1:]
        kept.append(best)
        corner = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        inner = np.maximum(corner, 0).prod(-1)
        with np.errstate(invalid="ignore"):  # two boxes without area: NaN, which is not above the threshold
            overlap = inner / (areas[best] + areas[order] - inner)
        order = order[~(overlap > iou_threshold)]
    return np.array(kept, np.int64)


def mask_box(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "4"]:
    """Returns (x0, y0, x1, y1) of the outermost pixels of a mask, all inclusive; zeros for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def box_pixels(box: Real[np.ndarray, "4"], size: tuple[int, int], margin: float = 0.0) -> tuple[int, int, int, int]:
    """Returns the pixels (x0, y0, x1, y1), the last two exclusive, that a box covers in an image.

    Args:
        box: (x0, y0, x1, y1), pixels; what lies outside of the image is cut off.
        size: (H, W) of the image, pixels.
        margin: by which part of its sides the box is longer at each end.
    """
    H, W = size
    sides = np.tile(np.asarray(box[2:]) - np.asarray(box[:2]), 2)
    x0, y0, x1, y1 = np.rint(np.clip(box + margin * sides * (-1, -1, 1, 1), 0, (W, H, W, H))).astype(int).tolist()
    return x0, y0, x1, y1


def zoom_window(
    box: Real[np.ndarray, "4"], size: tuple[int, int], zoom: float | None = None
) -> tuple[int, int, int, int]:
    """Returns the window (x0, y0, x1, y1) of an image in which to look at a box: all of it, or near a small box.

    The window of a small box is a square around it, 3 times as long as its longer side and at least 64 pixels. It is
    moved into the image, and cut where it is longer than that. There are 4 lengths per octave, so that windows have
    few sizes.

    Args:
        box: (x0, y0, x1, y1), pixels; what lies outside of the image is cut off.
        size: (H, W) of the image, pixels.
        zoom: the part of the image, 0-1, below which the area of a box is small; None: no box is.
    """
    H, W = size
    x0, y0, x1, y1 = np.clip(box, 0, (W, H, W, H)).tolist()
    if zoom is None or (x1 - x0) * (y1 - y0) >= zoom * H * W:
        return 0, 0, W, H
    least = max(ZOOM_MARGIN * max(x1 - x0, y1 - y0), ZOOM_SIDE)
    step = 2 ** (int(math.log2(least)) - 2)
    side = math.ceil(least / step) * step
    w, h = min(side, W), min(side, H)
    left = min(max(round((x0 + x1 - w) / 2), 0), W - w)
    top = min(max(round((y0 + y1 - h) / 2), 0), H - h)
    return left, top, left + w, top + h
