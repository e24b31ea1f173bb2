"""Bilinear sampling between images whose sizes are known only at run time, in arrays whose shapes are static.

An array may be larger than the image in its upper left corner; what lies outside is never read. Corners are aligned:
the first and the last pixel of one image fall on those of the other, as in PyTorch's `align_corners=True`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sam_jax.types import AnyArray


def aligned_positions(length: int, old: Int[AnyArray, ""], new: Int[AnyArray, ""]) -> Float[Array, " length"]:
    """Returns where the pixels of a side of `new` pixels lie on one of `old` pixels; from pixel `new` on, anywhere."""
    scale = (old - 1).astype(jnp.float32) / jnp.maximum(new - 1, 1)
    return jnp.arange(length) * scale


def sample(
    x: Float[AnyArray, "H W D"],
    rows: Float[AnyArray, " h"],
    columns: Float[AnyArray, " w"],
    size: Int[AnyArray, "2"],
    corner: Int[AnyArray, "2"] | int = 0,
) -> Float[Array, "h w D"]:
    """Samples a part of `x` bilinearly on a grid.

    Args:
        rows: positions in the part, pixels; those outside are moved to its border. `columns` likewise.
        size: (h, w) of the part.
        corner: (y, x) of its first pixel in `x`.
    """
    corner = jnp.broadcast_to(corner, (2,))
    for axis, positions in enumerate((rows, columns)):
        last = size[axis] - 1
        positions = jnp.clip(positions, 0, last)
        low = positions.astype(jnp.int32)
        high = jnp.minimum(low + 1, last)
        weight = jnp.expand_dims(positions - low, (1, 2) if axis == 0 else (0, 2))
        at_low, at_high = (jnp.take(x, corner[axis] + index, axis, mode="clip") for index in (low, high))
        x = at_low * (1 - weight) + at_high * weight
    return x


def resize(
    x: Float[AnyArray, "B H W D"], old: Int[AnyArray, "B 2"], new: Int[AnyArray, "B 2"], shape: tuple[int, int]
) -> Float[Array, "B h w D"]:
    """Resizes images of sizes `old` to sizes `new`, in an array of `shape`.

    One matrix per axis, which a compiler has done with sooner than with `sample`; for few pixels, as the network's.
    """

    def matrix(axis: int) -> Float[Array, "B new old"]:
        positions = jax.vmap(aligned_positions, (None, 0, 0))(shape[axis], old[:, axis], new[:, axis])
        positions = jnp.minimum(positions, old[:, axis, None] - 1)
        return jnp.maximum(1 - jnp.abs(positions[..., None] - jnp.arange(x.shape[1 + axis])), 0)

    x = jnp.einsum("bhH,bHWd->bhWd", matrix(0), x, precision="highest")
    return jnp.einsum("bwW,bhWd->bhwd", matrix(1), x, precision="highest")


def inside(sizes: Int[AnyArray, "B 2"], shape: tuple[int, int]) -> Bool[Array, "B H W 1"]:
    """Returns which pixels of an array of `shape` belong to the images."""
    y, x = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])[None]
    return ((y < sizes[:, 0, None, None]) & (x < sizes[:, 1, None, None]))[..., None]
