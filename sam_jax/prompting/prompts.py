"""Packs prompts, as users give them, into a few fixed shapes, so that another number of clicks compiles nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sam_jax.config import SamConfig
from sam_jax.errors import UserError, WrongType
from sam_jax.ops.transforms import points_to_input
from sam_jax.types import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, NOT_A_POINT, PAD, Prompts

TOKEN_BUCKETS = (2, 4, 8, 16, 32, 64, 128, 256)  # one click or one box is 2
PROMPT_BUCKETS = (1, 4, 16, 64)  # more go in several calls: memory grows with the prompts of one


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The prompt for one mask, in the original frame. Every part is optional, and any mix is allowed.

    Points must lie in the image. A box may reach beyond it and is cut to it, because detectors round outwards.
    """

    points: Float[np.ndarray, "N 2"] | None = None  # (x, y), pixels
    labels: Int[np.ndarray, " N"] | None = None  # 1 foreground, 0 background
    box: Float[np.ndarray, "4"] | None = None  # (x0, y0, x1, y1), pixels
    mask: Float[np.ndarray, "S S"] | None = None  # low_res logits of an earlier prediction
    text: str | None = None  # such as "a wheel"; a predictor with a CLIP embeds it
    text_embedding: Float[np.ndarray, " T"] | None = None  # of a text or of an object, by the model's CLIP

    def tokens(self, size: tuple[int, int], config: SamConfig) -> tuple[np.ndarray, np.ndarray]:
        """Checks points, labels and box, and returns points (N, 2) in the input frame and labels (N,).

        Raises:
            TypeError, ValueError: say what was expected and what came.
        """
        points, labels = self._checked_points(size)
        if self.box is not None:
            points = np.concatenate([points, self._checked_box(size)])
            labels = np.concatenate([labels, [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]])
        elif self.points is not None and self.text is None and self.text_embedding is None:
            # The padding point that the official model was trained with; its coordinates are not looked at. Decision:
            # like a box, a text takes its place, as it does in training, where it is the first prompt.
            points = np.concatenate([points, np.zeros((1, 2))])
            labels = np.concatenate([labels, [NOT_A_POINT]])
        return points_to_input(points, size, config.image_size), labels.astype(np.int32)

    def checked_mask(self, config: SamConfig) -> np.ndarray | None:
        """Checks the mask prompt, (S, S) or (1, S, S), and returns it as (S, S) float32; None if there is none.

        Raises:
            ValueError: another shape, a mask that is no logits, or values that are not finite.
        """
        if self.mask is None:
            return None
        side = config.low_res_size
        mask = np.asarray(self.mask)
        if mask.dtype == bool:
            raise UserError("mask_input must be logits, got a mask of dtype bool; pass low_res_logits of predict()")
        if mask.shape not in ((side, side), (1, side, side)):
            raise UserError(
                f"mask_input must be the ({side}, {side}) logits of an earlier prediction of model {config.name!r}, "
                f"got shape {mask.shape}; pass the low_res_logits that predict() returned"
            )
        if not np.isfinite(mask).all():
            raise UserError("mask_input holds NaN or infinite values; expected finite logits")
        return mask.reshape(side, side).astype(np.float32)

    def checked_text(self, config: SamConfig) -> np.ndarray | None:
        """Checks the embedding of the text and returns it as (T,) float32 of length 1; None if there is none.

        Raises:
            ValueError: the model has no text prompt; an embedding that is not its CLIP's; a text without one.
        """
        if self.text is None and self.text_embedding is None:
            return None
        if not config.text_dim:
            raise UserError(
                f"model {config.name!r} was not trained for text prompts; give points or a box, or another model"
            )
        if self.text_embedding is None:
            raise UserError(
                f"the text {self.text!r} has no embedding yet; give the predictor the model's CLIP "
                f"(clip=load_clip({config.text_encoder!r}), or with the path of its checkpoint)"
            )
        embedding = np.asarray(self.text_embedding, np.float32)
        if embedding.shape != (config.text_dim,):
            raise UserError(
                f"text_embedding must have shape ({config.text_dim},), as CLIP {config.text_encoder!r} of model "
                f"{config.name!r} gives it, got {embedding.shape}"
            )
        length = float(np.linalg.norm(embedding))
        if not 0 < length < np.inf:
            raise UserError("text_embedding must be finite and not zero")
        return embedding / length

    def check(self, size: tuple[int, int]) -> None:
        """Checks points and box against an image of size (H, W), before anything slow is done with them.

        Raises:
            ValueError: says what was expected and what came.
        """
        self._checked_points(size)
        if self.box is not None:
            self._checked_box(size)

    def _checked_points(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        if (self.points is None) != (self.labels is None):
            raise UserError("point_coords and point_labels go together: one label (1 or 0) for each point")
        if self.points is None:
            return np.zeros((0, 2)), np.zeros(0)
        points, labels = as_numbers(self.points, "point_coords"), as_numbers(self.labels, "point_labels")
        if points.ndim != 2 or points.shape[1] != 2:
            raise UserError(f"point_coords must have shape (N, 2), (x, y) in pixels, got {points.shape}")
        if labels.shape != points.shape[:1]:
            raise UserError(f"expected one label for each of {len(points)} points, got labels of shape {labels.shape}")
        if not np.isin(labels, (BACKGROUND, FOREGROUND)).all():
            raise UserError(f"point_labels must be 1 (foreground) or 0 (background), got {labels.tolist()}")
        if not np.isfinite(points).all():
            raise UserError(f"point coordinates must be finite numbers, got {points.tolist()}")
        H, W = size
        outside = points[((points < 0) | (points >= (W, H))).any(-1)]
        if len(outside):
            raise UserError(
                f"point ({outside[0][0]:g}, {outside[0][1]:g}) lies outside the image of {W} x {H} pixels "
                f"(width x height); x must be in 0..{W - 1} and y in 0..{H - 1}"
            )
        return points, labels

    def _checked_box(self, size: tuple[int, int]) -> np.ndarray:
        box = as_numbers(self.box, "box")
        if box.size != 4:
            raise UserError(
                f"box must be (x0, y0, x1, y1), got shape {box.shape}"
                + ("; several boxes: predict_prompts([Prompt(box=box) for box in boxes])" if box.ndim == 2 else "")
            )
        if not np.isfinite(box).all():
            raise UserError(f"box coordinates must be finite numbers, got {box.ravel().tolist()}")
        x0, y0, x1, y1 = box.ravel()
        if x1 <= x0 or y1 <= y0:
            raise UserError(f"box must have x1 > x0 and y1 > y0, got ({x0:g}, {y0:g}, {x1:g}, {y1:g})")
        H, W = size
        if x1 <= 0 or y1 <= 0 or x0 >= W or y0 >= H:
            raise UserError(f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies outside the image of {W} x {H} pixels")
        return np.clip([[x0, y0], [x1, y1]], 0, (W, H))


def as_numbers(values: Any, name: str) -> Float[np.ndarray, "..."]:
    """Returns numbers that a user gave, as float64.

    Raises:
        WrongType: they are no numbers, or lists of different lengths.
    """
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise WrongType(f"expected numbers as {name}, got {str(values)[:80]}: {error}") from error


def bucket(count: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds `count`; beyond the last bucket, the next multiple of it."""
    return next((b for b in buckets if b >= count), -(-count // buckets[-1]) * buckets[-1])


def pack_prompts(prompts: Sequence[Sequence[Prompt]], sizes: Sequence[tuple[int, int]], config: SamConfig) -> Prompts:
    """Packs the prompts of several images, of any number, into one padded `Prompts`.

    Slots that are padding have the label PAD, and nothing attends to them; the masks of whole prompts that are padding
    are to be cut off. A prompt without points, box and text has no token at all, as in the official code.

    Args:
        prompts: those of each image.
        sizes: (H, W) of each image, pixels.
    """
    tokens = [[prompt.tokens(size, config) for prompt in row] for row, size in zip(prompts, sizes, strict=True)]
    B, Q = len(prompts), bucket(max((len(row) for row in prompts), default=0), PROMPT_BUCKETS)
    N = bucket(max((len(labels) for row in tokens for _, labels in row), default=0), TOKEN_BUCKETS)
    points, labels = np.zeros((B, Q, N, 2), np.float32), np.full((B, Q, N), PAD, np.int32)
    for b, row in enumerate(tokens):
        for q, (xy, label) in enumerate(row):
            points[b, q, : len(xy)], labels[b, q, : len(label)] = xy, label
    packed = Prompts(points, labels)
    texts = [[prompt.checked_text(config) for prompt in row] for row in prompts]
    if any(text is not None for row in texts for text in row):
        embeddings, has_text = np.zeros((B, Q, config.text_dim), np.float32), np.zeros((B, Q), bool)
        for b, row_texts in enumerate(texts):
            for q, text in enumerate(row_texts):
                if text is not None:
                    embeddings[b, q], has_text[b, q] = text, True
        packed = packed._replace(text_embeddings=embeddings, has_text=has_text)
    mask_inputs = [[prompt.checked_mask(config) for prompt in row] for row in prompts]
    if all(mask is None for row in mask_inputs for mask in row):
        return packed
    logits = np.zeros((B, Q, config.low_res_size, config.low_res_size), np.float32)
    has_mask = np.zeros((B, Q), bool)
    for b, masks in enumerate(mask_inputs):
        for q, mask in enumerate(masks):
            if mask is not None:
                logits[b, q], has_mask[b, q] = mask, True
    return packed._replace(mask_logits=logits, has_mask=has_mask)
