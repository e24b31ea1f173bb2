"""Resizes logits from the low_res frame to the original frame.

The official code resizes bilinearly from low_res to the input frame, cuts off the padding, and resizes bilinearly to
the image, without antialiasing. Each step is linear and acts on rows and columns apart, so all of it is one matrix
for the rows and one for the columns. The host builds them from the image's size; on the device remain two matmuls,
whose compilation, the only one per image size, takes a fraction of a second.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.ops.transforms import input_size
from sam_jax.types import AnyArray


def bilinear_matrix(out_length: int, in_length: int) -> Float[np.ndarray, "{out_length} {in_length}"]:
    """Returns weights of 1-D bilinear interpolation: pixel centres at +0.5, repeated edges, no antialiasing."""
    source = (np.arange(out_length) + 0.5) * (in_length / out_length) - 0.5
    source = np.clip(source, 0, in_length - 1)
    lower = np.minimum(source.astype(int), max(in_length - 2, 0))
    upper = np.minimum(lower + 1, in_length - 1)
    matrix = np.zeros((out_length, in_length))
    rows = np.arange(out_length)
    matrix[rows, lower] += 1 - (source - lower)
    matrix[rows, upper] += source - lower
    return matrix


@functools.lru_cache(maxsize=32)
def frame_matrices(
    original_size: tuple[int, int], config: SamConfig
) -> tuple[Float[np.ndarray, "H S"], Float[np.ndarray, "W S"]]:
    """Returns the matrices that resize the rows and the columns of low_res logits to an image, in float32.

    Args:
        original_size: (H, W) of the image, pixels.
    """
    to_input = bilinear_matrix(config.image_size, config.low_res_size)
    rows, columns = (
        (bilinear_matrix(length, valid) @ to_input[:valid]).astype(np.float32)
        for length, valid in zip(original_size, input_size(original_size, config.image_size), strict=True)
    )
    return rows, columns


def to_original_frame(
    low_res_logits: Float[AnyArray, "... S S"],
    original_size: tuple[int, int],
    config: SamConfig,
    *,
    return_logits: bool = False,
) -> Bool[Array, "... H W"] | Float[Array, "... H W"]:
    """Resizes the decoder's logits to the image that was encoded.

    Args:
        low_res_logits: S = config.low_res_size.
        original_size: (H, W) of the image, pixels.
        return_logits: do not apply the threshold.

    Returns:
        (..., H, W): masks, True where the logit is above 0; or the float32 logits.

    Raises:
        ValueError: logits of another size.
    """
    S = config.low_res_size
    if low_res_logits.shape[-2:] != (S, S):
        raise ValueError(f"expected logits of {S} x {S} for model {config.name!r}, got shape {low_res_logits.shape}")
    return _resize(low_res_logits, *frame_matrices(tuple(original_size), config), return_logits=return_logits)


@functools.partial(jax.jit, static_argnames=("return_logits",))
def _resize(logits: Array, rows: Array, columns: Array, *, return_logits: bool) -> Array:
    def resize_one(plane: Array) -> Array:
        # HIGHEST: on TPU and recent GPUs the default would round the logits to 8-10 bits.
        plane = jnp.matmul(rows, plane, precision=jax.lax.Precision.HIGHEST)
        plane = jnp.matmul(plane, columns.T, precision=jax.lax.Precision.HIGHEST)
        return plane if return_logits else plane > 0

    # One by one: float logits of many masks on a large image would take gigabytes before the threshold.
    planes = jax.lax.map(resize_one, logits.astype(jnp.float32).reshape(-1, *logits.shape[-2:]))
    return planes.reshape(*logits.shape[:-2], *planes.shape[-2:])
