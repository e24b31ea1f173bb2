"""What is evaluated: anything that answers clicks on a picture with masks. Others: `baselines`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from sam_jax.model import Sam
from sam_jax.ops.prompts import Prompt
from sam_jax.predictor import SamPredictor
from sam_jax.types import Params


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
    """Opens pictures. Several threads do so at a time."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """What the results depend on: records of another identity are not used again."""
        ...

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session: ...


def model_identity(model: Sam) -> str:
    """Config and params, not the name: a model of the same name may have been trained further."""
    return params_digest(f"{model.config.to_json()} {np.dtype(model.dtype)}", model.params)


def params_digest(settings: str, params: Params) -> str:
    """16 digits that stand for settings and params."""
    digest = hashlib.sha256(settings.encode())
    for path, leaf in jax.tree.leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


class SamSegmenter:
    """The model: three masks at the first click, then the single mask, with the last logits fed back."""

    name = "sam"

    def __init__(self, model: Sam) -> None:
        self._model = model

    @property
    def identity(self) -> str:
        return f"{self.name} {model_identity(self._model)}"

    def open(self, image: UInt8[np.ndarray, "H W 3"]) -> Session:
        predictor = SamPredictor(self._model)
        predictor.set_image(image)
        return _SamSession(predictor)


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
