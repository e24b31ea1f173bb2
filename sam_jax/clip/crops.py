"""Cuts objects out of images for CLIP: a square around each, resized and normalised.

Each axis of a crop is one matrix, so that crops of any place and size have one static shape and run on the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from sam_jax.clip.config import ClipConfig
from sam_jax.types import AnyArray

SHARPNESS = -0.5  # of the cubic kernel: Pillow's, with which CLIP's images were resized
INSIDE = 0.5  # a patch is the object's if so much of it is


def square_boxes(boxes: Float[AnyArray, "*batch 4"], expansion: Float[Array, "*#batch"]) -> Float[Array, "*batch 4"]:
    """Returns squares with the centres of boxes (x0, y0, x1, y1), and `expansion` times their longer sides."""
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
    half = jnp.maximum(jnp.maximum(x1 - x0, y1 - y0), 1.0) * expansion / 2
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return jnp.stack([x - half, y - half, x + half, y + half], -1)


def crop_matrix(
    start: Float[Array, "*batch"],
    stop: Float[Array, "*batch"],
    count: int,
    length: int,
    valid: Float[Array, "*#batch"],
) -> Float[Array, "*batch {count} {length}"]:
    """Returns the weights that resample the part [start, stop) of an axis to `count` pixels: cubic, antialiased.

    Args:
        length: pixels of the axis, of which the first `valid` are image.

    Returns:
        weights that sum to 1, as Pillow's do, or to 0 for a pixel whose centre is outside of the image.
    """
    step = ((stop - start) / count)[..., None]
    centres = start[..., None] + (jnp.arange(count) + 0.5) * step
    distance = (jnp.arange(length) + 0.5 - centres[..., None]) / jnp.maximum(step, 1.0)[..., None]
    t = jnp.abs(distance)
    a = SHARPNESS
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    weights = jnp.where(t < 1, near, jnp.where(t < 2, far, 0.0))
    weights = jnp.where(jnp.arange(length) < valid[..., None, None], weights, 0.0)
    inside = (centres >= 0) & (centres < valid[..., None])
    total = weights.sum(-1, keepdims=True)
    return jnp.where(inside[..., None], weights / jnp.where(inside[..., None], total, 1.0), 0.0)


def _resample(rows: Array, columns: Array, image: Array) -> Array:
    # HIGHEST: accelerators' default would round pixels to 8 bits.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return product(product(rows, image), columns.swapaxes(-1, -2))


def crop_objects(
    images: UInt8[AnyArray, "B H W 3"],
    sizes: Int[AnyArray, "B 2"],
    masks: Bool[AnyArray, "B Q L K"],
    squares: Float[AnyArray, "B Q 4"],
    config: ClipConfig,
    *,
    hide: Bool[AnyArray, "B Q"],
) -> tuple[Float[Array, "B Q S S 3"], Bool[Array, "B Q g g"]]:
    """Crops Q objects of each image, normalised, and marks the patches where the objects are.

    Decision: what lies outside of the image, and what is hidden, is 0 after the normalisation, the mean colour, as in
    SAM's own padding. A patch belongs to an object that covers half of it; where an object covers no patch so far, the
    patches that it covers most do.

    Args:
        images: RGB, 0-255, padded on the right and bottom with anything.
        sizes: (h, w) of the part that is image.
        masks: of the whole padded image, at any scale: L / H = K / W.
        squares: from `square_boxes`, pixels of `images`.
        hide: whether pixels outside of the object are zeroed.
    """
    side, grid = config.image_size, config.grid_size
    H, W, scale = images.shape[1], images.shape[2], masks.shape[2] / images.shape[1]
    mean, std = jnp.array(config.pixel_mean), jnp.array(config.pixel_std)

    def one(image: Array, size: Array, mask: Array, square: Array, hide: Array) -> tuple[Array, Array]:
        h, w = size.astype(jnp.float32)
        x0, y0, x1, y1 = square
        rows, columns = crop_matrix(y0, y1, side, H, h), crop_matrix(x0, x1, side, W, w)
        crop = jnp.moveaxis(_resample(rows, columns, jnp.moveaxis(image.astype(jnp.float32), -1, 0)), 0, -1)
        inside = (rows.sum(-1) > 0.5)[:, None] & (columns.sum(-1) > 0.5)[None, :]
        mask_rows = crop_matrix(y0 * scale, y1 * scale, side, mask.shape[0], h * scale)
        mask_columns = crop_matrix(x0 * scale, x1 * scale, side, mask.shape[1], w * scale)
        covered = _resample(mask_rows, mask_columns, mask.astype(jnp.float32)) > 0.5
        crop = (jnp.clip(jnp.round(crop), 0, 255) - mean) / std
        crop = jnp.where((inside & (covered | ~hide))[..., None], crop, 0.0)
        share = covered.reshape(grid, side // grid, grid, side // grid).mean((1, 3))
        return crop, share >= jnp.minimum(INSIDE, share.max())

    over_masks = jax.vmap(one, in_axes=(None, None, 0, 0, 0))
    return jax.vmap(over_masks)(images, sizes, masks, squares, hide)
