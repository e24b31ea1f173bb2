"""Finds masks for boxes: by the model, with the refinement of the paper's instance segmentation, or the box itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from sam_jax.model import Sam, model_identity
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.rle import encode_rle
from sam_jax.predictor import embed
from sam_jax.prompting.prompts import PROMPT_BUCKETS, Prompt, pack_prompts
from sam_jax.types import Prompts


class BoxSegmenter(Protocol):
    """A way to find the mask of the object in a box."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """Returns a text of what the masks depend on; stored masks of another identity are not used again."""
        ...

    def segment(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> list[list[dict[str, Any]]]:
        """Finds a mask for each box (x0, y0, x1, y1) of each image, with `segmentation` and `predicted_iou`."""
        ...


@dataclasses.dataclass(frozen=True)
class SamBoxes:
    """Prompts a model with the box, and once more with the box and the best of the three masks that came.

    A box alone is one prompt, so three masks come; box and mask are two, so the second answer is the single mask
    (paper, section A). Logits stay on the device until the last masks are chosen.

    Args:
        refine: prompt the second time; else the best of the three masks is the answer.
        batch_size: images that pass the model together. The last ones are filled up to it: one shape to compile.
    """

    model: Sam
    refine: bool = True
    batch_size: int = 4

    @property
    def name(self) -> str:
        return "sam" if self.refine else "sam one pass"

    @property
    def identity(self) -> str:
        return f"{self.name} {model_identity(self.model)}"

    def segment(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> list[list[dict[str, Any]]]:
        results: list[list[dict[str, Any]]] = [[] for _ in images]
        if not any(map(len, boxes)):
            return results
        fill = max(0, self.batch_size - len(images))
        images = [*images, *[images[0]] * fill]
        sizes = [image.shape[:2] for image in images]
        prompts = [[Prompt(box=box) for box in row] for row in boxes] + [[]] * fill
        embeddings = embed(self.model, images)
        at_once = PROMPT_BUCKETS[-1]
        for start in range(0, max(map(len, prompts)), at_once):
            rows = [row[start : start + at_once] for row in prompts]
            logits, iou = self._decode(embeddings, pack_prompts(rows, sizes, self.model.config))
            for b, found in enumerate(results):
                if rows[b]:
                    masks = np.asarray(to_original_frame(logits[b], sizes[b], self.model.config))[: len(rows[b])]
                    scores = np.asarray(iou[b]).round(6).tolist()
                    found += [
                        {"segmentation": encode_rle(mask), "predicted_iou": score}
                        for mask, score in zip(masks, scores[: len(masks)], strict=True)
                    ]
        return results

    def _decode(self, embeddings: Array, prompts: Prompts) -> tuple[Float[Array, "B Q S S"], Float[Array, "B Q"]]:
        first = self.model.decode(embeddings, prompts)  # the single mask, and the three
        best = jnp.argmax(first.iou_predictions[:, :, 1:], -1, keepdims=True) + 1
        logits = jnp.take_along_axis(first.low_res_logits, best[..., None, None], 2)[:, :, 0]
        if not self.refine:
            return logits, jnp.take_along_axis(first.iou_predictions, best, 2)[:, :, 0]
        second = self.model.decode(embeddings, prompts._replace(mask_logits=logits))
        return second.low_res_logits[:, :, 0], second.iou_predictions[:, :, 0]


@dataclasses.dataclass(frozen=True)
class FilledBox:
    """Takes the whole box as the mask, the baseline that every model should beat."""

    name: ClassVar[str] = "box"
    identity: ClassVar[str] = "box"

    def segment(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> list[list[dict[str, Any]]]:
        results: list[list[dict[str, Any]]] = []
        for image, row in zip(images, boxes, strict=True):
            results.append([])
            for x0, y0, x1, y1 in np.rint(row).astype(int).clip(0):
                mask = np.zeros(image.shape[:2], bool)
                mask[y0:y1, x0:x1] = True
                results[-1].append({"segmentation": encode_rle(mask), "predicted_iou": 1.0})
        return results
