"""Edges of masks and of images on the device: Sobel gradients, boundaries of masks, thinning of soft maps.

Reference: paper, section D.2; the edges toolbox of Dollar, whose thinning is used for BSDS500.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BORDER = 5  # pixels; edges fade towards the sides of the image, where estimates are bad
TOLERANCE = 1.01  # an edge stays if so many times its strength is no less than that of both neighbours across it
SMOOTHING = 4  # pixels; radius of the triangle filter before orientations


def sobel_magnitude(image: Float[Array, "*N H W"]) -> Float[Array, "*N H W"]:
    """Returns the length of the 3 x 3 Sobel gradient. Beyond its sides the image repeats its last pixels."""
    dx = _correlate(_correlate(image, (-1, 0, 1), -1), (1, 2, 1), -2)
    dy = _correlate(_correlate(image, (1, 2, 1), -1), (-1, 0, 1), -2)
    return jnp.hypot(dx, dy)


def outer_boundary(masks: Bool[Array, "*N H W"]) -> Bool[Array, "*N H W"]:
    """Returns the pixels outside of each mask that touch it by a side or a corner."""
    padded = jnp.pad(masks, [(0, 0)] * (masks.ndim - 2) + [(1, 1), (1, 1)])
    H, W = masks.shape[-2:]
    columns = padded[..., :W] | padded[..., 1:-1] | padded[..., 2:]
    return (columns[..., :H, :] | columns[..., 1:-1, :] | columns[..., 2:, :]) & ~masks


class Planes(NamedTuple):
    """Resizes low_res logits to an image by one matrix per axis, from `sam_jax.ops.masks.frame_matrices`."""

    rows: Float[Array, "H S"]
    columns: Float[Array, "W S"]

    def logits(self, low_res: Float[Array, "N S S"]) -> Float[Array, "N H W"]:
        """Returns the logits of N masks at the size of the image."""
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return product(product(self.rows, low_res), self.columns.T)


@functools.partial(jax.jit, static_argnames=("at_once",))
def mask_boxes(low_res_logits: Float[Array, "N S S"], planes: Planes, *, at_once: int) -> Int[Array, "N 4"]:
    """Returns (x0, y0, x1, y1) of the outermost pixels of masks in the image, all inclusive; zeros for an empty mask.

    Args:
        at_once: how many masks are resized to the image together.
    """

    def box(low_res: Array) -> Array:
        mask = planes.logits(low_res[None])[0] > 0
        in_column, in_row = mask.any(0), mask.any(1)
        x1, y1 = (len(line) - 1 - line[::-1].argmax() for line in (in_column, in_row))
        return jnp.stack([in_column.argmax(), in_row.argmax(), x1, y1]) * mask.any()

    return jax.lax.map(box, low_res_logits, batch_size=at_once)


@functools.partial(jax.jit, static_argnames=("at_once",))
def strongest_edges(
    low_res_logits: Float[Array, "N S S"],
    kept: Int[Array, " N"],
    count: Int[Array, ""],
    planes: Planes,
    *,
    at_once: int,
) -> Float[Array, "H W"]:
    """Returns the strongest Sobel gradient of any mask's probabilities at each pixel, on that mask's outer boundary.

    Masks are resized to the image a few at a time, in a loop that ends with the last of them.

    Args:
        kept: indices of the masks; the first `count` are used, the rest is padding.
        count: how many masks are used.
        at_once: how many masks are resized to the image together.
    """

    def some(state: tuple[Array, Array]) -> tuple[Array, Array]:
        done, strongest = state
        # What the last group has beyond the count is the first mask again, which changes no maximum.
        rows = done + jnp.arange(at_once)
        logits = planes.logits(low_res_logits[kept[jnp.where(rows < count, rows, 0)]])
        edges = jnp.where(outer_boundary(logits > 0), sobel_magnitude(jax.nn.sigmoid(logits)), 0)
        return done + at_once, jnp.maximum(strongest, edges.max(0))

    start = jnp.zeros((), int), jnp.zeros((len(planes.rows), len(planes.columns)))
    return jax.lax.while_loop(lambda state: state[0] < count, some, start)[1]


@jax.jit
def normalize_edges(edges: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Scales a map linearly to 0-1; a map of one value becomes 0."""
    low, high = edges.min(), edges.max()
    return (edges - low) / jnp.where(high > low, high - low, 1)


@jax.jit
def thin_edges(edges: Float[Array, "H W"]) -> Float[Array, "H W"]:
    """Keeps of each soft edge what is strongest across it (non-maximum suppression, as in Canny's detector).

    Each pixel is compared with its two neighbours at a distance of one pixel across the edge, interpolated bilinearly.
    The direction across an edge is that in which the map, smoothed with a triangle filter, is curved most.
    """
    triangle = [SMOOTHING + 1 - abs(i) for i in range(-SMOOTHING, SMOOTHING + 1)]
    smooth = edges
    for axis in (-2, -1):
        smooth = _correlate(smooth, [w / sum(triangle) for w in triangle], axis, mode="symmetric")
    dy, dx = jnp.gradient(smooth)
    (dyy, dxy), (_, dxx) = jnp.gradient(dy), jnp.gradient(dx)
    # The toolbox has sign(-dxy), which is 0 on exactly horizontal edges and would look along them.
    across = jnp.arctan(dyy * jnp.where(dxy > 0, -1, 1) / (dxx + 1e-5))

    H, W = edges.shape
    y, x = jnp.mgrid[:H, :W]
    stays = edges > 0
    for sign in (-1, 1):
        stays &= edges * TOLERANCE >= _interpolate(edges, y + sign * jnp.sin(across), x + sign * jnp.cos(across))
    fade_y, fade_x = (jnp.minimum(z, n - 1 - z).clip(max=BORDER) / BORDER for z, n in ((y, H), (x, W)))
    return jnp.where(stays, edges * fade_y * fade_x, 0)


def _correlate(image: Array, weights: tuple[float, ...] | list[float], axis: int, mode: str = "edge") -> Array:
    length, radius = image.shape[axis], len(weights) // 2
    padding = [(0, 0)] * image.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(image, padding, mode=mode)
    parts = (w * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i, w in enumerate(weights) if w)
    return functools.reduce(jnp.add, parts)


def _interpolate(image: Array, y: Array, x: Array) -> Array:
    return jax.scipy.ndimage.map_coordinates(image, [y, x], order=1, mode="nearest")
