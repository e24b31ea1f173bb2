"""Defines a CLIP to embed texts and objects with: config and params, with jitted functions for all of one size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from sam_jax.clip.config import ClipConfig
from sam_jax.clip.crops import crop_objects, square_boxes
from sam_jax.clip.network import embed_images, embed_tokens
from sam_jax.clip.tokenizer import tokenize
from sam_jax.types import Params

TEXTS_AT_ONCE = (1, 8, 64)  # groups that texts are embedded in: few to compile for
OBJECTS_AT_ONCE = 16
SIZE_STEP = 256  # images are padded to multiples of it, so that few sizes compile
EXPANSION = 1.5  # of an object's box: the middle of what training draws


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """One CLIP. Get one from `sam_jax.load_clip`, or build it from config and params.

    Args:
        config: the model's numbers.
        params: as `sam_jax.clip.network.init_clip_params` gives them; moved to the default device.
        dtype: number format of the arithmetic.
    """

    config: ClipConfig
    params: Params = dataclasses.field(repr=False)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n E"]:
        """Embeds texts; embeddings have length 1.

        Raises:
            WrongType, UserError, MissingPackage: as `sam_jax.clip.tokenizer.tokenize`.
        """
        tokens = tokenize(texts, self.config.text_length)
        embeddings = np.zeros((len(tokens), self.config.embedding_dim), np.float32)
        start = 0
        while start < len(tokens):
            left = len(tokens) - start
            group = next((size for size in TEXTS_AT_ONCE if size >= left), TEXTS_AT_ONCE[-1])
            part = tokens[start : start + group]
            padded = np.pad(part, ((0, group - len(part)), (0, 0)))
            embedded = _embed_tokens(self.params["text"], padded, config=self.config, dtype=self.dtype)
            embeddings[start : start + len(part)] = np.asarray(embedded)[: len(part)]
            start += len(part)
        return embeddings

    def embed_objects(
        self, image: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "n H W"]
    ) -> Float[np.ndarray, "n E"]:
        """Embeds the objects that masks cut out of an image, for comparison with texts; embeddings have length 1.

        Each is the mean of two views of a square around the object: with what is around it, and without.

        Args:
            image: RGB, 0-255.
            masks: one mask for each object, not empty.

        Raises:
            ValueError: masks are of another size, or empty.
        """
        masks = np.asarray(masks, bool)
        if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
            raise ValueError(f"expected masks of shape (n, {image.shape[0]}, {image.shape[1]}), got {masks.shape}")
        H, W = image.shape[:2]
        spare = (-H % SIZE_STEP, -W % SIZE_STEP)
        padded = np.pad(image, ((0, spare[0]), (0, spare[1]), (0, 0)))
        embeddings = np.zeros((len(masks), self.config.embedding_dim), np.float32)
        for start in range(0, len(masks), OBJECTS_AT_ONCE):
            part = masks[start : start + OBJECTS_AT_ONCE]
            unused = OBJECTS_AT_ONCE - len(part)
            boxes = np.array([_box(mask) for mask in part] + [(0, 0, 1, 1)] * unused, np.float32)
            embedded = _embed_objects(
                self.params["visual"],
                padded,
                np.array((H, W), np.int32),
                np.pad(part, ((0, unused), (0, spare[0]), (0, spare[1]))),
                boxes,
                config=self.config,
                dtype=self.dtype,
            )
            embeddings[start : start + len(part)] = np.asarray(embedded)[: len(part)]
        return embeddings


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the edges (x0, y0, x1, y1) of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        raise ValueError("expected masks with at least one pixel, got an empty one")
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _embed_tokens(text: Params, tokens: Int[Array, "n N"], *, config: ClipConfig, dtype: Any) -> Array:
    return embed_tokens({"text": text}, tokens, config, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _embed_objects(
    visual: Params, image: Array, size: Array, masks: Array, boxes: Array, *, config: ClipConfig, dtype: Any
) -> Array:
    squares = square_boxes(boxes, jnp.float32(EXPANSION))
    views = []
    for hide in (False, True):
        images, patches = crop_objects(
            image[None], size[None], masks[None], squares[None], config, hide=jnp.full((1, len(masks)), hide)
        )
        views.append(embed_images({"visual": visual}, images[0], config, patches[0], dtype=dtype))
    mean = sum(views)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
