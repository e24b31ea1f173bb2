"""RITM as a segmenter with its published settings: the baseline of the Segment Anything paper.

In evaluation configs it is the method `ritm:PATH`, with the path of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sam_jax.checkpoints.hub import load_ritm
from sam_jax.evals.segmenters import Clicks, ObjectMasks, Session
from sam_jax.model import params_digest
from sam_jax.ritm import THRESHOLD, Ritm, RitmPredictor, ZoomIn

PREFIX = "ritm:"


class RitmSegmenter:
    """Predicts one mask per object from all its clicks and the previous probabilities.

    Args:
        name: name of the method in results.
        zoom: zoom-in settings. The default is RITM's for all datasets except DAVIS, where its `side` is 600.
    """

    def __init__(self, model: Ritm, name: str = "ritm", zoom: ZoomIn = ZoomIn()) -> None:  # noqa: B008
        self.name = name
        self._model, self._zoom = model, zoom

    @classmethod
    def from_method(cls, method: str, zoom: ZoomIn = ZoomIn()) -> RitmSegmenter:  # noqa: B008
        """Loads the model of the method `ritm:PATH`, under the name `ritm STEM` of the file.

        Raises:
            FileNotFoundError, MissingPackage, UserError: as `sam_jax.checkpoints.load_ritm`.
        """
        path = Path(method.removeprefix(PREFIX))
        return cls(load_ritm(path), f"ritm {path.stem}", zoom)

    @property
    def identity(self) -> str:
        digest = params_digest(f"{self._model.config.to_json()} {self._zoom}", self._model.params)
        return f"ritm {digest}"

    def open_session(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        return _RitmSession(self._model, self._zoom, image)


class _RitmSession:
    def __init__(self, model: Ritm, zoom: ZoomIn, image: np.ndarray) -> None:
        self._model, self._zoom, self._image = model, zoom, image
        self._objects: list[_RitmObject] = []

    def segment(self, clicks: Sequence[Clicks]) -> list[ObjectMasks]:
        if not self._objects:
            self._objects = [_RitmObject(self._model, self._zoom, self._image) for _ in clicks]
        return [one.segment(its) for one, its in zip(self._objects, clicks, strict=True)]


class _RitmObject:
    """The prediction history of one object. A call without a new click returns the same masks again."""

    def __init__(self, model: Ritm, zoom: ZoomIn, image: np.ndarray) -> None:
        self._predictor = RitmPredictor(model, zoom)
        self._predictor.set_image(image)
        self._masks: ObjectMasks | None = None
        self._seen = 0

    def segment(self, clicks: Clicks) -> ObjectMasks:
        if self._masks is None or len(clicks.points) != self._seen:
            mask = self._predictor.predict(clicks.points, clicks.labels) > THRESHOLD
            self._masks, self._seen = mask[None], len(clicks.points)
        return self._masks
