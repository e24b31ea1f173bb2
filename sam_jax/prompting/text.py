"""Simulates text prompts without texts, by what CLIP's image tower sees of each mask.

CLIP puts an image and its description at nearly the same place, so a model that was prompted with embeddings of the
objects themselves can be prompted with embeddings of texts.

Reference: paper, section D.5 "Zero-shot text-to-mask".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from sam_jax.clip.config import ClipConfig
from sam_jax.clip.crops import crop_objects, square_boxes
from sam_jax.config import TextConfig
from sam_jax.types import Batch


def object_views(
    key: Key[Array, ""], batch: Batch, clip: ClipConfig, config: TextConfig
) -> tuple[Float[Array, "B Q S S 3"], Bool[Array, "B Q g g"], Bool[Array, "B Q"]]:
    """Cuts a square around each mask, enlarged at random, and hides what is outside of the mask at random.

    Decision: crops come from the input frame, in which the step has the images, and are padded outside of it.

    Returns:
        images for `sam_jax.clip.network.embed_images`; the patches where the objects are; and which masks have
        the text as their first prompt.
    """
    assert batch.images is not None
    expand_key, hide_key, choice_key = jax.random.split(key, 3)
    shape = batch.valid.shape
    low, high = config.expansion
    expansion = jax.random.uniform(expand_key, shape, minval=low, maxval=high)
    edges = batch.boxes + jnp.array([0.0, 0.0, 1.0, 1.0])  # boxes hold pixels, inclusive
    hide = jax.random.bernoulli(hide_key, config.hide_probability, shape)
    images, patches = crop_objects(
        batch.images, batch.sizes, batch.masks, square_boxes(edges, expansion), clip, hide=hide
    )
    return images, patches, jax.random.bernoulli(choice_key, config.probability, shape)
