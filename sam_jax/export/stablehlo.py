"""A Segment Anything model as two StableHLO programs, which run with JAX alone, on any of its platforms.

Reference: `jax.export`, whose files JAX reads for six months at least after the release that wrote them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.typing import DTypeLike

from sam_jax.config import SamConfig
from sam_jax.export.functions import decode_embedding, decoder_inputs, most_points
from sam_jax.modeling import encode_image, normalize_images
from sam_jax.types import Params

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def encoder_program(params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32) -> bytearray:
    """Returns the image encoder: images (batch, S, S, 3) uint8 and sizes (batch, 2), (h, w) of what is image in each.

    Its result, float32, is (batch, channels, rows, columns).
    """
    (batch,) = export.symbolic_shape("batch")
    side = config.image_size

    def encode(images: Any, sizes: Any) -> jax.Array:
        normal = normalize_images(images, sizes, config.encoder)
        return encode_image(params, normal, config, dtype=dtype).astype(jnp.float32).transpose(0, 3, 1, 2)

    shapes = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8), jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    return export.export(jax.jit(encode), platforms=PLATFORMS)(*shapes).serialize()


def decoder_program(params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32) -> bytearray:
    """Returns the decoder, with the inputs of `sam_jax.export.onnx_model.decoder_model` but the last, in their order.

    At most `most_points` points a prompt. Results, float32: logits (prompts, 4, l, l) and predicted IoUs (prompts, 4).
    """
    prompts, points = export.symbolic_shape("prompts, points", constraints=[f"points <= {most_points(config)}"])

    def decode(*inputs: Any) -> tuple[jax.Array, jax.Array]:
        return decode_embedding(params, config, *inputs, dtype=dtype)

    inputs = decoder_inputs(config, prompts, points).values()
    return export.export(jax.jit(decode), platforms=PLATFORMS)(*inputs).serialize()
