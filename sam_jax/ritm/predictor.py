"""Segments interactively with RITM as its published evaluation does: zoom-in, mirrored copy, previous mask."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sam_jax.errors import UserError
from sam_jax.ops.transforms import as_rgb
from sam_jax.ritm.model import Ritm, crop_part, paste_part, probabilities
from sam_jax.ritm.zoom import Box, ZoomIn
from sam_jax.types import BACKGROUND, FOREGROUND, PAD

THRESHOLD = 0.49
"""Probability above which the published evaluation takes a pixel for the object."""

# Sides of the arrays that images and parts of them are put into: few, so that few shapes are compiled; near those of
# the usual sets' images, and of the parts, whose longer side is 400 (for DAVIS 600).
SIDES = (128, 192, 256, 320, 352, 384, 416, 480, 512, 608, 640, 736, 864, 1024)
ZOOM = ZoomIn()
MIN_SLOTS = 32  # of clicks; twice as many, and so on, where they do not suffice


def padded_side(side: int) -> int:
    """Returns the least side of `SIDES` that suffices; beyond them, the next multiple of 256."""
    return next((known for known in SIDES if known >= side), -(-side // 256) * 256)


class RitmPredictor:
    """Predicts one object after another from clicks, in one image after another.

    The calls of several threads come one after another, each on the image and object of that moment. Threads that
    segment side by side need predictors of their own, which may share a model.

    Example:
        predictor = RitmPredictor(load_ritm("coco_lvis_h32_itermask.pth"))
        predictor.set_image(image)
        probabilities = predictor.predict([(320, 210)], [1])
        probabilities = predictor.predict([(320, 210), (80, 40)], [1, 0])
        mask = probabilities > THRESHOLD

    Args:
        zoom: how to zoom in on the object; None: the network always sees the whole image.
        flip: whether to average with the prediction for the mirrored image.
    """

    def __init__(self, model: Ritm, zoom: ZoomIn | None = ZOOM, flip: bool = True) -> None:
        self.model = model
        self._zoom, self._flip = zoom, flip
        self._image: Array | None = None
        self._lock = threading.RLock()  # each prediction builds on the one before
        self.reset()

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Takes an image, and forgets the object of the one before.

        Args:
            image: (H, W, 3), uint8, 0-255; grey and RGBA are taken too.
            image_format: RGB or BGR.

        Raises:
            WrongType, UserError: this is not such an image. The one that was set before stays.
        """
        image = as_rgb(image, image_format)
        size = image.shape[0], image.shape[1]
        h, w = (padded_side(side) for side in size)
        padded = jnp.asarray(np.pad(image, ((0, h - size[0]), (0, w - size[1]), (0, 0))))
        with self._lock:
            self._image, self._size = padded, size
            self.reset()

    def reset(self) -> None:
        """Forgets the object; the image stays."""
        with self._lock:
            self._answer: np.ndarray | None = None  # probabilities after the last click
            self._box: Box | None = None  # what was zoomed in on last
            if self._image is not None:
                self._previous = jnp.zeros(self._image.shape[:2])  # the probabilities, padded as the image is

    @property
    def box(self) -> Box | None:
        """Returns the part that was zoomed in on last; None: nothing yet."""
        return self._box

    def predict(self, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> Float[np.ndarray, "H W"]:
        """Predicts the probabilities of the object, given all clicks on it so far; to be called after each.

        What the network predicted at the call before is its input at this one, so the same clicks give different
        results in another order.

        Args:
            points: (x, y), pixels of the original image.
            labels: 1 in the object, 0 outside.

        Raises:
            RuntimeError: no image is set.
            UserError: there is no click, or clicks lie outside the image or have other labels.
        """
        with self._lock:
            return self._predict(points, labels)

    def _predict(self, points: Sequence[tuple[float, float]], labels: Sequence[int]) -> Float[np.ndarray, "H W"]:
        if self._image is None:
            raise RuntimeError("no image is set; call set_image(image) first")
        clicks, kinds = _checked(points, labels, self._size)
        whole = Box(0, self._size[0] - 1, 0, self._size[1] - 1)
        part = self._part(clicks, kinds)
        box = part or whole
        seen_size = self._zoom.seen_size(box) if self._zoom and part else box.size
        corner, old, new = (np.array(pair, np.int32) for pair in ((box.top, box.left), box.size, seen_size))
        shape = padded_side(seen_size[0]), padded_side(seen_size[1])
        seen = crop_part(self._image, self._previous, corner, old, new, shape=shape)
        slots = _pack((clicks - corner[::-1]) * new[::-1] / old[::-1], kinds)
        result = probabilities(self.model.params, *seen, new, *slots, config=self.model.config, flip=self._flip)
        # What the network saw goes back into the box; also where, for want of an object to zoom in on, it saw the
        # whole image while there was a box from before. The published evaluation does that.
        target = self._box or whole
        corner, extent = np.array([target.top, target.left], np.int32), np.array(target.size, np.int32)
        self._previous = paste_part(result, new, corner, extent, shape=self._image.shape[:2])
        self._answer = np.array(self._previous[: self._size[0], : self._size[1]])
        return self._answer.copy()

    def _part(self, clicks: np.ndarray, kinds: np.ndarray) -> Box | None:
        """Returns the part to zoom in on; None at the first click, and where there is no object yet."""
        if self._zoom is None or len(clicks) == 1 or self._answer is None:
            return None
        mask = self._answer > self._zoom.threshold
        if not mask.any():
            return None
        foreground = clicks[kinds == FOREGROUND].astype(np.int64)
        self._box = self._zoom.choose(self._zoom.find_box(mask, foreground), self._box, foreground)
        return self._box


def _checked(
    points: Sequence[tuple[float, float]], labels: Sequence[int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clicks as (N, 2) and (N,) arrays, once they are known to be sound."""
    clicks, kinds = np.asarray(points, np.float64), np.asarray(labels)
    if clicks.ndim != 2 or clicks.shape[1] != 2 or len(clicks) == 0 or kinds.shape != clicks.shape[:1]:
        raise UserError(f"expected N > 0 points (x, y) and as many labels, got shapes {clicks.shape} and {kinds.shape}")
    if not np.isin(kinds, (FOREGROUND, BACKGROUND)).all():
        raise UserError(f"expected labels {FOREGROUND} (in the object) and {BACKGROUND} (outside), got {kinds}")
    if not ((clicks >= 0) & (clicks < np.array(size[::-1]))).all():
        raise UserError(f"expected clicks in an image of {size[1]} x {size[0]} pixels, got {clicks.tolist()}")
    return clicks, kinds


def _pack(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pads the clicks to a number of slots that a few more clicks do not change."""
    slots = MIN_SLOTS
    while slots < len(points):
        slots *= 2
    rest = slots - len(points)
    return np.pad(points, ((0, rest), (0, 0))).astype(np.float32), np.pad(labels, (0, rest), constant_values=PAD)
