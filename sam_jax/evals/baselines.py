"""Classical interactive segmentation methods, as baselines: region growing, GrabCut and a disc around each click.

Their defaults were tuned on training images by benchmarks/tune_baselines.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.evals.segmenters import Clicks, ObjectMasks, Session


@dataclasses.dataclass(frozen=True)
class _ClassicalMethod:
    """A method that segments one object at a time and predicts one mask for it."""

    name: ClassVar[str]

    @property
    def identity(self) -> str:
        return f"{self.name} {dataclasses.asdict(self)}"

    def open_session(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        prepared = self._prepare(image)
        return _PerObjectSession(lambda clicks: self._segment(prepared, clicks))

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def _segment(self, image: np.ndarray, clicks: Clicks) -> Bool[np.ndarray, "H W"]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _PerObjectSession:
    segment_one: Callable[[Clicks], np.ndarray]

    def segment(self, clicks: Sequence[Clicks]) -> list[ObjectMasks]:
        return [self.segment_one(one)[None] for one in clicks]


@dataclasses.dataclass(frozen=True)
class RegionGrowing(_ClassicalMethod):
    """Grows a region of similar colour from each click: a flood fill in Lab space on a slightly smoothed image.

    A pixel that both foreground and background clicks reach takes the label of the nearest of them.
    """

    name = "region growing"

    tolerance: int = 34  # largest difference in each Lab channel, 0-255
    floating: bool = False  # compare each pixel with its neighbour instead of with the clicked pixel

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.bilateralFilter(image, 5, 30, 5), cv2.COLOR_RGB2LAB)

    def _segment(self, image: np.ndarray, clicks: Clicks) -> np.ndarray:
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | (0 if self.floating else cv2.FLOODFILL_FIXED_RANGE) | (1 << 8)
        limit = (self.tolerance,) * 3
        ys, xs = np.ogrid[: image.shape[0], : image.shape[1]]
        # Squared distance from each pixel to the nearest background and foreground click that reaches it.
        nearest = np.full((2, *image.shape[:2]), np.inf, np.float32)
        for (x, y), label in zip(*clicks, strict=True):
            filled = np.zeros((image.shape[0] + 2, image.shape[1] + 2), np.uint8)
            cv2.floodFill(image, filled, (x, y), 0, limit, limit, flags)
            distance = np.where(filled[1:-1, 1:-1] > 0, (ys - y) ** 2 + (xs - x) ** 2, np.inf)
            nearest[label] = np.minimum(nearest[label], distance)
        return nearest[1] < nearest[0]


@dataclasses.dataclass(frozen=True)
class GrabCut(_ClassicalMethod):
    """GrabCut (Rother et al. 2004), initialised with a small disc of certain pixels around each click.

    Pixels within `reach` disc radii of a foreground click start as probable foreground, all others as probable
    background. It runs on a downscaled image, which is both faster and more accurate than full size.
    """

    name = "GrabCut"

    radius: float = 0.02  # radius of the disc, as a fraction of the longer side
    reach: float = 3.0  # radius of the probable foreground, in disc radii
    iterations: int = 3
    side: int = 256  # longer side in pixels to which larger images are downscaled

    def _segment(self, image: np.ndarray, clicks: Clicks) -> np.ndarray:
        h, w = image.shape[:2]
        scale = min(1.0, self.side / max(h, w))
        size = max(1, round(w * scale)), max(1, round(h * scale))
        small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1])
        points = [(int((x + 0.5) * size[0] / w), int((y + 0.5) * size[1] / h)) for x, y in clicks.points]
        radius = max(2, round(self.radius * max(size)))
        state: Any = np.full(small.shape[:2], cv2.GC_PR_BGD, np.uint8)
        for point, label in zip(points, clicks.labels, strict=True):
            if label:
                cv2.circle(state, point, round(self.reach * radius), cv2.GC_PR_FGD, -1)
        for point, label in zip(points, clicks.labels, strict=True):
            cv2.circle(state, point, radius, cv2.GC_FGD if label else cv2.GC_BGD, -1)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        with contextlib.suppress(cv2.error):  # a colour model without pixels
            cv2.grabCut(small, state, (0, 0, 1, 1), background, foreground, self.iterations, cv2.GC_INIT_WITH_MASK)
        found = ((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)).astype(np.float32)
        return cv2.resize(found, (w, h), interpolation=cv2.INTER_LINEAR) > 0.5


@dataclasses.dataclass(frozen=True)
class Disc(_ClassicalMethod):
    """Predicts a disc around each foreground click, minus the discs of background clicks: the weakest baseline."""

    name = "disc"

    radius: float = 0.035  # radius of the discs, as a fraction of the longer side

    def _segment(self, image: np.ndarray, clicks: Clicks) -> np.ndarray:
        mask = np.zeros(image.shape[:2], np.uint8)
        for value in (1, 0):
            for point, label in zip(*clicks, strict=True):
                if label == value:
                    cv2.circle(mask, point, max(1, round(self.radius * max(mask.shape))), value, -1)
        return mask > 0


BASELINES: dict[str, type[_ClassicalMethod]] = {method.name: method for method in (RegionGrowing, GrabCut, Disc)}
