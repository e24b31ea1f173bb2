"""The interface of methods that click evaluations run, and SAM as such a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.model import Sam, model_identity
from sam_jax.predictor import SamPredictor
from sam_jax.prompting.prompts import Prompt


class Clicks(NamedTuple):
    """All clicks on one object so far, in the original frame."""

    points: list[tuple[int, int]]  # (x, y)
    labels: list[int]  # 1 on the object, 0 on the background


ObjectMasks = Bool[np.ndarray, "M H W"]
"""The masks predicted for one object, best first: the first one is scored and corrected by further clicks."""


class Session(Protocol):
    """An opened image, in which any number of objects are segmented in parallel."""

    def segment(self, clicks: Sequence[Clicks]) -> list[ObjectMasks]:
        """Predicts the masks of each object. Each call has one more click per object than the one before."""
        ...


class Segmenter(Protocol):
    """An interactive segmentation method. It must be thread-safe: several images are open at a time."""

    @property
    def name(self) -> str:
        """The name of the method in results and files."""
        ...

    @property
    def identity(self) -> str:
        """Everything the results depend on; records are only reused if their identity is the same."""
        ...

    def open_session(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        """Prepares an image for segmentation."""
        ...


class SamSegmenter:
    """SAM: three masks for the first click, then the single mask, each time with the previous logits as mask prompt."""

    name = "sam"

    def __init__(self, model: Sam) -> None:
        self._model = model

    @property
    def identity(self) -> str:
        return f"{self.name} {model_identity(self._model)}"

    def open_session(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        predictor = SamPredictor(self._model)
        predictor.set_image(image)
        return _SamSession(predictor)


class _SamSession:
    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor
        self._logits: list[Any] = []

    def segment(self, clicks: Sequence[Clicks]) -> list[ObjectMasks]:
        previous: list[Any] = self._logits or [None] * len(clicks)
        prompts = [
            Prompt(np.array(c.points), np.array(c.labels), None, logits)
            for c, logits in zip(clicks, previous, strict=True)
        ]
        first = not self._logits
        result = self._predictor.predict_prompts(prompts, multimask_output=first)
        predictions, self._logits = [], []
        for masks, iou, logits in zip(*result, strict=True):
            order = np.argsort(-iou, kind="stable")
            predictions.append(masks[order])
            self._logits.append(logits[order[0]])
        return predictions
