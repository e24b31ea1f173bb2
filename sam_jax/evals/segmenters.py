"""What is evaluated: anything that answers clicks on an image with masks. Others: `baselines`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.model import Sam, model_identity
from sam_jax.predictor import SamPredictor
from sam_jax.prompting.prompts import Prompt


class Clicks(NamedTuple):
    """The clicks on one object so far, in the original frame."""

    points: list[tuple[int, int]]  # (x, y)
    labels: list[int]  # 1 in the object, 0 outside


ObjectMasks = Bool[np.ndarray, "M H W"]
"""The masks predicted for one object, best first: the first one is scored and corrected by further clicks."""


class Session(Protocol):
    """One image, on which any number of objects are segmented side by side."""

    def segment(self, clicks: Sequence[Clicks]) -> list[ObjectMasks]:
        """One answer per object. Called with one more click per object each time."""
        ...


class Segmenter(Protocol):
    """Opens images. Several threads do so at a time."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What the results depend on: records of another identity are not used again."""
        ...

    def open_session(self, image: UInt8[np.ndarray, "H W 3"]) -> Session: ...


class SamSegmenter:
    """The model: three masks at the first click, then the single mask, with the last logits fed back."""

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
