"""Chooses the part of the image that the network sees: after the first click, the object so far and what is near.

The rules, roundings and quirks are those of the published evaluation. Boxes are (top, bottom, left, right) in pixels of
the original frame, both ends included.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Box(NamedTuple):
    """A part of an image, both ends included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Returns (h, w)."""
        return self.bottom - self.top + 1, self.right - self.left + 1


@dataclasses.dataclass(frozen=True)
class ZoomIn:
    """The rules by which the network zooms in on the object.

    The defaults are those of the published figures, but for DAVIS, where `side` is 600.

    Reference: Sofiiuk et al. 2020 (f-BRS), section 3.4; the published code's `eval_mode` "cvpr".
    """

    side: int = 400  # longer side of what the network sees, pixels
    expansion: float = 1.4  # factor by which the box around object and foreground clicks grows
    min_side: int = 200  # least side of the box, pixels of the original frame
    keep_overlap: float = 0.5  # the box stays while its overlap with the one wanted is at least this
    threshold: float = 0.5  # probability above which a pixel belongs to the object

    def find_box(self, mask: Bool[np.ndarray, "H W"], foreground: Int[np.ndarray, "N 2"]) -> Box:
        """Returns the box around a mask that is not empty and the foreground clicks, (x, y); enlarged, then cut off."""
        mask = mask.copy()
        mask[foreground[:, 1], foreground[:, 0]] = True
        ends = []
        for axis, length in enumerate(mask.shape):
            taken = np.flatnonzero(mask.any(1 - axis))
            low, high = int(taken[0]), int(taken[-1])
            centre, half = 0.5 * (low + high), 0.5 * max(self.expansion * (high - low + 1), self.min_side)
            ends += [max(0, round(centre - half)), min(length - 1, round(centre + half))]
        return Box(*ends)

    def choose(self, wanted: Box, current: Box | None, foreground: Int[np.ndarray, "N 2"]) -> Box:
        """Returns the current box, unless a foreground click lies outside it or it differs too much from `wanted`."""
        if current is None:
            return wanted
        x, y = foreground.T
        # The last row and column count as outside.
        outside = (y < current.top) | (y >= current.bottom) | (x < current.left) | (x >= current.right)
        keep = not outside.any() and overlap(wanted, current) >= self.keep_overlap
        return current if keep else wanted

    def seen_size(self, box: Box) -> tuple[int, int]:
        """Returns the size (h, w) at which the network sees a box."""
        h, w = box.size
        scale = self.side / max(h, w)
        return max(1, round(h * scale)), max(1, round(w * scale))


def overlap(a: Box, b: Box) -> float:
    """Returns the product of the sides' intersections over unions; the latter span the gap where boxes are apart."""
    total = 1.0
    for low, high in (("top", "bottom"), ("left", "right")):
        (a0, a1), (b0, b1) = ((getattr(box, low), getattr(box, high)) for box in (a, b))
        total *= max(0, min(a1, b1) - max(a0, b0) + 1) / (max(a1, b1) - min(a0, b0) + 1)
    return total
