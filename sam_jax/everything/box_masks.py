"""Finds masks for boxes: by the model, or the box itself.

The model may refine its masks as in the paper's instance segmentation, and may look at small boxes from near.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from sam_jax.errors import UserError
from sam_jax.model import Sam, model_identity
from sam_jax.ops.boxes import box_pixels, zoom_window
from sam_jax.ops.masks import to_original_frame
from sam_jax.ops.rle import counts_from_mask, encode_rle, rle_from_counts
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


class _View(NamedTuple):
    """A window of an image that is encoded, and the rows of the boxes that are prompts there."""

    image: int
    window: tuple[int, int, int, int]  # (x0, y0, x1, y1), pixels
    rows: list[int]


@dataclasses.dataclass(frozen=True)
class SamBoxes:
    """Prompts a model with the box, and once more with the box and the best of the three masks that came.

    A box alone is one prompt, so three masks come; box and mask are two, so the second answer is the single mask
    (paper, section A). The result is the one of the two in which the model has more confidence. Logits stay on the
    device until the last masks are chosen.

    Args:
        refine: prompt the second time; else the best of the three masks is the answer.
        batch_size: images that pass the model together. The last ones are filled up to it: one shape to compile.
        zoom: the part of the image, 0-1, below which the area of a box is small. Each small box gets an embedding of
            its own, of a window around it (`zoom_window`), and its mask ends with the window. None: no box does.
        margin: how far a mask may reach beyond its box at each end, in parts of the box's sides; 0 for boxes that are
            known to hold the whole object. None: as far as the model says, as in the paper.

    Raises:
        UserError: `zoom` is not in (0, 1], or `margin` is negative.
    """

    model: Sam
    refine: bool = True
    batch_size: int = 4
    zoom: float | None = None
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.zoom is not None and not 0 < self.zoom <= 1:
            raise UserError(f"expected zoom, a part of the image, in (0, 1], got {self.zoom}")
        if self.margin is not None and not self.margin >= 0:
            raise UserError(f"expected margin, in parts of a box's sides, of at least 0, got {self.margin}")

    @property
    def name(self) -> str:
        options = {" one pass": not self.refine, " zoom": self.zoom is not None, " inside": self.margin is not None}
        return "sam" + "".join(word for word, used in options.items() if used)

    @property
    def identity(self) -> str:
        values = [f"{value:g}" for value in (self.zoom, self.margin) if value is not None]
        return " ".join([self.name, *values, model_identity(self.model)])

    def segment(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> list[list[dict[str, Any]]]:
        """Finds a mask for each box, as `BoxSegmenter.segment` says."""
        results: list[list[dict[str, Any]]] = [[{}] * len(row) for row in boxes]
        whole, near = self._views([image.shape[:2] for image in images], boxes)
        for views in (whole, near):  # apart, because a window has one prompt and an image may have many
            for start in range(0, len(views), self.batch_size):
                part = views[start : start + self.batch_size]
                for view, masks in zip(part, self._segment_views(part, images, boxes), strict=True):
                    for row, mask in zip(view.rows, masks, strict=True):
                        results[view.image][row] = mask
        return results

    def _views(
        self, sizes: Sequence[tuple[int, int]], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> tuple[list[_View], list[_View]]:
        """Returns the images with the boxes that are prompts there, and the windows around small boxes."""
        whole, near = [], []
        for i, ((H, W), own) in enumerate(zip(sizes, boxes, strict=True)):
            windows = [zoom_window(box, (H, W), self.zoom) for box in own]
            everything = (0, 0, W, H)
            if rows := [row for row, window in enumerate(windows) if window == everything]:
                whole.append(_View(i, everything, rows))
            near += [_View(i, window, [row]) for row, window in enumerate(windows) if window != everything]
        return whole, near

    def _segment_views(
        self, views: Sequence[_View], images: Sequence[np.ndarray], boxes: Sequence[Float[np.ndarray, "Q 4"]]
    ) -> list[list[dict[str, Any]]]:
        """Finds the masks of at most `batch_size` views, in the frames of their images."""
        results: list[list[dict[str, Any]]] = [[] for _ in views]
        crops, prompts = [], []
        for view in views:
            x0, y0, x1, y1 = view.window
            crops.append(images[view.image][y0:y1, x0:x1])
            prompts.append([Prompt(box=boxes[view.image][row] - np.array([x0, y0, x0, y0])) for row in view.rows])
        fill = self.batch_size - len(views)
        crops += [crops[0]] * fill
        prompts += [[]] * fill
        sizes = [crop.shape[:2] for crop in crops]
        embeddings = embed(self.model, crops)
        at_once = PROMPT_BUCKETS[-1]
        for start in range(0, max(map(len, prompts)), at_once):
            rows = [row[start : start + at_once] for row in prompts]
            logits, iou = self._decode(embeddings, pack_prompts(rows, sizes, self.model.config))
            for b, (view, found) in enumerate(zip(views, results, strict=True)):
                if rows[b]:
                    masks = list(np.asarray(to_original_frame(logits[b], sizes[b], self.model.config))[: len(rows[b])])
                    if self.margin is not None:
                        own_boxes = boxes[view.image][view.rows[start : start + at_once]] - np.tile(view.window[:2], 2)
                        masks = [end_at_box(*pair, self.margin) for pair in zip(masks, own_boxes, strict=True)]
                    scores = np.asarray(iou[b]).round(6).tolist()
                    size = images[view.image].shape[:2]
                    found += [
                        {
                            "segmentation": rle_from_counts(counts_from_mask(mask, size, view.window[:2]), size),
                            "predicted_iou": score,
                        }
                        for mask, score in zip(masks, scores[: len(masks)], strict=True)
                    ]
        return results

    def _decode(self, embeddings: Array, prompts: Prompts) -> tuple[Float[Array, "B Q S S"], Float[Array, "B Q"]]:
        three = self.model.decode(embeddings, prompts)  # after the single mask, which is not for a box alone
        best = jnp.argmax(three.iou_predictions[:, :, 1:], -1, keepdims=True) + 1
        logits = jnp.take_along_axis(three.low_res_logits, best[..., None, None], 2)[:, :, 0]
        iou = jnp.take_along_axis(three.iou_predictions, best, 2)[:, :, 0]
        if not self.refine:
            return logits, iou
        again = self.model.decode(embeddings, prompts._replace(mask_logits=logits))
        better = again.iou_predictions[:, :, 0] > iou
        return (
            jnp.where(better[..., None, None], again.low_res_logits[:, :, 0], logits),
            jnp.maximum(again.iou_predictions[:, :, 0], iou),
        )


def end_at_box(mask: Bool[np.ndarray, "H W"], box: Float[np.ndarray, "4"], margin: float) -> Bool[np.ndarray, "H W"]:
    """Returns the part of a mask that lies in a box (x0, y0, x1, y1), or within `margin` of its sides around it."""
    x0, y0, x1, y1 = box_pixels(box, mask.shape, margin)
    ended = np.zeros_like(mask)
    ended[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return ended


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
            for box in row:
                mask = end_at_box(np.ones(image.shape[:2], bool), box, 0.0)
                results[-1].append({"segmentation": encode_rle(mask), "predicted_iou": 1.0})
        return results
