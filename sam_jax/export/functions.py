"""The decoder with the inputs of the official export, as a function whose numbers of prompts and points are free."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sam_jax.config import SamConfig
from sam_jax.errors import UserError
from sam_jax.modeling import decode_masks, encode_prompts
from sam_jax.types import AnyArray, Params, Prompts


def most_points(config: SamConfig) -> int:
    """Returns up to how many points of a prompt the decoder's attention multiplies in the order that is best for few.

    To be traced for any number of points, it must know which of two equal ways to take (`DecoderAttention`).

    Raises:
        UserError: the model is so small that even one point is too many.
    """
    inner, cells = config.prompt_dim // config.decoder_attention_downsample, config.grid_size**2
    tokens = (cells * inner - 1) // (inner + cells * config.decoder_heads)
    most = tokens - 1 - config.num_mask_tokens
    if most < 1:
        raise UserError(
            f"expected a model with a larger image or a wider decoder for export, {config.name!r} is too small"
        )
    return most


def decoder_inputs(config: SamConfig, prompts: Any, points: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns names and shapes of the inputs of `decode_embedding`, for numbers or symbols."""
    grid, low = config.grid_size, config.low_res_size
    shapes = {
        "image_embeddings": (1, config.embedding_dim, grid, grid),
        "point_coords": (prompts, points, 2),
        "point_labels": (prompts, points),
        "mask_input": (prompts, 1, low, low),
        "has_mask_input": (1,),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def decode_embedding(
    params: Params,
    config: SamConfig,
    embedding: Float[AnyArray, "1 E h w"],
    coords: Float[AnyArray, "Q N 2"],
    labels: Float[AnyArray, "Q N"],
    mask: Float[AnyArray, "Q 1 l l"],
    has_mask: Float[AnyArray, "1"],
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "Q M l l"], Float[Array, "Q M"]]:
    """Returns the logits and predicted IoUs of all M answers to Q prompts on an image.

    Args:
        coords: (x, y) in pixels of the input frame.
        labels: 1 foreground, 0 background, 2 and 3 the corners of a box, -1 no point.
        has_mask: 1 if `mask` counts, else 0.
    """
    Q = coords.shape[0]  # as many images with a prompt each: no shape then depends on how many there are
    grid = config.grid_size
    embeddings = jnp.broadcast_to(embedding.transpose(0, 2, 3, 1), (Q, grid, grid, config.embedding_dim))
    prompts = Prompts(coords[:, None], labels[:, None].astype(jnp.int32), mask, jnp.broadcast_to(has_mask > 0, (Q, 1)))
    encoded = encode_prompts(params, prompts, config, dtype=dtype)
    found = decode_masks(params, embeddings, encoded, config, dtype=dtype)
    return found.low_res_logits[:, 0], found.iou_predictions[:, 0]
