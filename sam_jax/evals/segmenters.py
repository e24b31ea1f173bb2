"""What is evaluated: the model, and what a user has without one. All answer the same clicks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.model import Sam
from sam_jax.ops.prompts import Prompt
from sam_jax.predictor import SamPredictor


class Clicks(NamedTuple):
    """The clicks on one object so far, in the original frame."""

    points: list[tuple[int, int]]  # (x, y)
    labels: list[int]  # 1 in the object, 0 outside


class Answer(NamedTuple):
    """Masks for one object; the first is the one to go on with."""

    masks: Bool[np.ndarray, "M H W"]


class Session(Protocol):
    """One picture, on which any number of objects are segmented side by side."""

    def segment(self, clicks: Sequence[Clicks]) -> list[Answer]:
        """One answer per object. Called with one more click per object each time."""
        ...


class Segmenter(Protocol):
    """Opens pictures."""

    name: str

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session: ...


class SamSegmenter:
    """The model: three masks at the first click, then the single mask, with the last logits fed back."""

    name = "sam"

    def __init__(self, model: Sam) -> None:
        self._predictor = SamPredictor(model)

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        self._predictor.set_image(image)
        return _SamSession(self._predictor)


class _SamSession:
    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor
        self._logits: list[Any] = []

    def segment(self, clicks: Sequence[Clicks]) -> list[Answer]:
        previous: list[Any] = self._logits or [None] * len(clicks)
        prompts = [
            Prompt(np.array(c.points), np.array(c.labels), None, logits)
            for c, logits in zip(clicks, previous, strict=True)
        ]
        first = not self._logits
        result = self._predictor.predict_prompts(prompts, multimask_output=first)
        answers, self._logits = [], []
        for masks, iou, logits in zip(*result, strict=True):
            order = np.argsort(-iou, kind="stable")
            answers.append(Answer(masks[order]))
            self._logits.append(logits[order[0]])
        return answers


class RegionGrowing:
    """Grows a region of like colour from each foreground click (flood fill in Lab on a lightly smoothed picture).

    Regions grown from background clicks are cut out again. `tolerance` is the greatest difference to the clicked colour
    in each Lab channel, 0-255, chosen on BSDS500's training pictures (benchmarks/tune_baselines.py).
    """

    name = "region growing"

    def __init__(self, tolerance: int = 12, floating: bool = False) -> None:
        self._tolerance, self._floating = tolerance, floating

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        smooth = cv2.bilateralFilter(image, 5, 30, 5)
        return _PerObject(lambda clicks: self._grow(cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB), clicks))

    def _grow(self, lab: np.ndarray, clicks: Clicks) -> np.ndarray:
        inside, outside = (np.zeros(lab.shape[:2], bool) for _ in range(2))
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | (0 if self._floating else cv2.FLOODFILL_FIXED_RANGE) | (1 << 8)
        limit = (self._tolerance,) * 3
        for point, label in zip(*clicks, strict=True):
            filled = np.zeros((lab.shape[0] + 2, lab.shape[1] + 2), np.uint8)
            cv2.floodFill(lab, filled, point, 0, limit, limit, flags)
            (inside if label else outside)[filled[1:-1, 1:-1] > 0] = True
        return inside & ~outside


class GrabCut:
    """GrabCut (Rother et al. 2004) from a small disc of sure pixels around each click; the rest is for it to find out.

    Pixels within `reach` discs of a foreground click are probably object, all others probably background.
    """

    name = "GrabCut"

    def __init__(self, radius: float = 0.015, reach: float = 4.0, iterations: int = 3) -> None:
        self._radius, self._reach, self._iterations = radius, reach, iterations

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        return _PerObject(lambda clicks: self._cut(np.ascontiguousarray(image[..., ::-1]), clicks))

    def _cut(self, image: np.ndarray, clicks: Clicks) -> np.ndarray:
        radius = max(2, round(self._radius * max(image.shape[:2])))
        state: Any = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
        for point, label in zip(*clicks, strict=True):
            if label:
                cv2.circle(state, point, round(self._reach * radius), cv2.GC_PR_FGD, -1)
        for point, label in zip(*clicks, strict=True):
            cv2.circle(state, point, radius, cv2.GC_FGD if label else cv2.GC_BGD, -1)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        with contextlib.suppress(cv2.error):  # no pixel left for one of the two colour models
            cv2.grabCut(image, state, (0, 0, 1, 1), background, foreground, self._iterations, cv2.GC_INIT_WITH_MASK)
        return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)


class Disc:
    """The floor: a disc around each foreground click, of a radius that is this fraction of the longer side."""

    name = "disc"

    def __init__(self, radius: float = 0.06) -> None:
        self._radius = radius

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        return _PerObject(lambda clicks: self._draw(image.shape[:2], clicks))

    def _draw(self, size: tuple[int, int], clicks: Clicks) -> np.ndarray:
        mask = np.zeros(size, np.uint8)
        for value in (1, 0):
            for point, label in zip(*clicks, strict=True):
                if label == value:
                    cv2.circle(mask, point, max(1, round(self._radius * max(size))), value, -1)
        return mask > 0


class _PerObject:
    """A session of a method that knows one object at a time and gives one mask."""

    def __init__(self, segment_one) -> None:
        self._segment_one = segment_one

    def segment(self, clicks: Sequence[Clicks]) -> list[Answer]:
        return [Answer(self._segment_one(one)[None]) for one in clicks]
