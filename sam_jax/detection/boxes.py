"""Computes with boxes (x0, y0, x1, y1) on the device: edges in pixels, so that one pixel has width 1, in float32."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sam_jax.detection.config import ASPECT_RATIOS, DetectorConfig
from sam_jax.types import AnyArray

MAX_LOG_SCALE = math.log(1000 / 16)  # a box grows by no more than this factor at once


def box_areas(boxes: Float[AnyArray, "*batch 4"]) -> Float[AnyArray, "*batch"]:
    """Returns the areas of boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Float[AnyArray, "*batch N 4"], b: Float[AnyArray, "*batch M 4"]) -> Float[Array, "*batch N M"]:
    """Returns the IoU of every box of `a` with every box of `b`; 0 where they do not overlap."""
    corner = jnp.minimum(a[..., :, None, 2:], b[..., None, :, 2:]) - jnp.maximum(
        a[..., :, None, :2], b[..., None, :, :2]
    )
    inner = jnp.maximum(corner, 0).prod(-1)
    union = box_areas(a)[..., :, None] + box_areas(b)[..., None, :] - inner
    return jnp.where(inner > 0, inner / jnp.where(inner > 0, union, 1.0), 0.0)


def clip_boxes(boxes: Float[AnyArray, "B *rest 4"], sizes: Int[AnyArray, "B 2"]) -> Float[Array, "B *rest 4"]:
    """Cuts boxes to images of sizes (h, w)."""
    h, w = (sizes[:, i].reshape(-1, *[1] * (boxes.ndim - 2)) for i in (0, 1))
    limit = jnp.stack([w, h, w, h], -1).astype(boxes.dtype)
    return jnp.clip(boxes, 0, limit)


def not_empty(boxes: Float[AnyArray, "*batch 4"]) -> Bool[Array, "*batch"]:
    """Returns which boxes are finite and have a positive width and height."""
    return jnp.isfinite(boxes).all(-1) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def decode_boxes(
    deltas: Float[AnyArray, "*batch 4"], boxes: Float[AnyArray, "*#batch 4"], weights: tuple[float, float]
) -> Float[Array, "*batch 4"]:
    """Moves and scales boxes by the deltas that a head predicts.

    Args:
        deltas: offset of the centre in widths and heights, and logarithms of the factors on them, times `weights`.
        weights: of offsets and of logarithms; 1 in the proposal network.

    Reference: Girshick et al. 2014, appendix C.
    """
    sizes = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sizes
    centres = deltas[..., :2] / weights[0] * sizes + centres
    sizes = jnp.exp(jnp.minimum(deltas[..., 2:] / weights[1], MAX_LOG_SCALE)) * sizes
    return jnp.concatenate([centres - 0.5 * sizes, centres + 0.5 * sizes], -1)


def encode_boxes(
    targets: Float[AnyArray, "*batch 4"], boxes: Float[AnyArray, "*batch 4"], weights: tuple[float, float]
) -> Float[Array, "*batch 4"]:
    """Returns the deltas with which `decode_boxes` turns `boxes` into `targets`. Both must not be empty."""
    sizes, target_sizes = (x[..., 2:] - x[..., :2] for x in (boxes, targets))
    offset = (targets[..., :2] + 0.5 * target_sizes) - (boxes[..., :2] + 0.5 * sizes)
    return jnp.concatenate([weights[0] * offset / sizes, weights[1] * jnp.log(target_sizes / sizes)], -1)


def make_anchors(config: DetectorConfig) -> list[Float[Array, "_ 4"]]:
    """Returns the anchors of the maps p2 to p6, by row, column and aspect ratio, around each cell's top left corner."""
    maps = []
    for stride, side in zip(config.strides, config.sides, strict=True):
        area = (config.anchor_cells * stride) ** 2
        widths = [math.sqrt(area / ratio) for ratio in ASPECT_RATIOS]
        shapes = jnp.array(
            [[-w / 2, -ratio * w / 2, w / 2, ratio * w / 2] for ratio, w in zip(ASPECT_RATIOS, widths, strict=True)]
        )
        ys, xs = jnp.meshgrid(*2 * [jnp.arange(side, dtype=jnp.float32) * stride], indexing="ij")
        corners = jnp.stack([xs, ys, xs, ys], -1)
        maps.append((corners[:, :, None] + shapes).reshape(-1, 4))
    return maps


def box_levels(boxes: Float[AnyArray, "*batch 4"], config: DetectorConfig) -> Int[Array, "*batch"]:
    """Returns which of the maps p2 to p5 (0 to 3) each box is pooled from: larger boxes from coarser maps.

    Reference: Lin et al. 2017 (feature pyramids), equation 1.
    """
    octave = jnp.floor(jnp.log2(jnp.sqrt(box_areas(boxes)) / config.box_size + 1e-8))
    return (2 + jnp.clip(octave, -2, 1)).astype(jnp.int32)
