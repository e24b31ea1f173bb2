"""Defines a RITM model to predict with: config and params, and the jitted functions of one click."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from sam_jax.ritm.config import RitmConfig
from sam_jax.ritm.network import predict_logits
from sam_jax.ritm.sampling import aligned_positions, sample
from sam_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Ritm:
    """One RITM model. Get one from `sam_jax.checkpoints.load_ritm`, or build it from config and params.

    Args:
        params: nested dict of arrays, with the running statistics; moved to the default device.
    """

    config: RitmConfig
    params: Params = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        # Once, and not with every call.
        object.__setattr__(self, "params", jax.tree.map(jnp.asarray, self.params))


@functools.partial(jax.jit, static_argnames="shape")
def crop_part(
    image: UInt8[Array, "P Q 3"],
    previous: Float[Array, "P Q"],
    corner: Int[Array, "2"],
    old: Int[Array, "2"],
    new: Int[Array, "2"],
    *,
    shape: tuple[int, int],
) -> tuple[Float[Array, "H W 3"], Float[Array, "H W"]]:
    """Resizes a part of the image, as values of 0-1, and of the previous probabilities, into arrays of `shape`.

    Args:
        corner: (y, x) of the part's first pixel.
        old: (h, w) of the part.
        new: (h, w) that it gets.
    """
    together = jnp.concatenate([image / jnp.float32(255), previous[..., None]], -1)
    rows, columns = (aligned_positions(shape[axis], old[axis], new[axis]) for axis in range(2))
    seen = sample(together, rows, columns, old, corner)
    return seen[..., :3], seen[..., 3]


@functools.partial(jax.jit, static_argnames=("config", "flip"))
def probabilities(
    params: Params,
    image: Float[Array, "H W 3"],
    previous: Float[Array, "H W"],
    size: Int[Array, "2"],
    points: Float[Array, "N 2"],
    labels: Int[Array, " N"],
    *,
    config: RitmConfig,
    flip: bool,
) -> Float[Array, "H W"]:
    """Returns the probabilities of the object in one image; see `predict_logits`.

    Args:
        flip: average the logits with those of the mirrored image.
    """
    images, maps, clicks = image[None], previous[None], points[None]
    if flip:
        mirrored = jnp.maximum(size[1] - 1 - jnp.arange(image.shape[1]), 0)
        images = jnp.stack([image, image[:, mirrored]])
        maps = jnp.stack([previous, previous[:, mirrored]])
        clicks = jnp.stack([points, jnp.stack([size[1] - 1 - points[:, 0], points[:, 1]], -1)])
    both = len(images)
    sizes, kinds = (jnp.broadcast_to(part, (both, len(part))) for part in (size, labels))
    logits = predict_logits(params, images, maps, clicks, kinds, sizes, config)
    return jax.nn.sigmoid(0.5 * (logits[0] + logits[1][:, mirrored]) if flip else logits[0])


@functools.partial(jax.jit, static_argnames="shape")
def paste_part(
    seen: Float[Array, "H W"],
    size: Int[Array, "2"],
    corner: Int[Array, "2"],
    extent: Int[Array, "2"],
    *,
    shape: tuple[int, int],
) -> Float[Array, "P Q"]:
    """Puts the probabilities of a part into the image, in an array of `shape`; they are zero outside the part.

    Args:
        size: (h, w) that the part has in `seen`.
        corner: (y, x) of its first pixel in the image.
        extent: (h, w) that it has there.
    """
    positions, covered = [], []
    for axis, length in enumerate(shape):
        pixel = jnp.arange(length) - corner[axis]
        covered.append((pixel >= 0) & (pixel < extent[axis]))
        scale = (size[axis] - 1).astype(jnp.float32) / jnp.maximum(extent[axis] - 1, 1)
        positions.append(pixel * scale)
    whole = sample(seen[..., None], positions[0], positions[1], size)[..., 0]
    return jnp.where(covered[0][:, None] & covered[1], whole, 0)
