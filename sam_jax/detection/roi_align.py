"""ROIAlign, exact: bilinear samples as dense as the map's cells, averaged in each bin of a box.

As many samples lie in a bin as it has cells (rounded up, along both sides), so their number differs from box to box,
which static shapes do not allow for. But bilinear interpolation and the average factor into rows and columns: a
pooled box is W_rows @ (the cells that it touches) @ W_columns^T. The weights of a cell come from the at most four
samples along an axis that are near to it; and boxes touch a bounded number of cells, since large ones are pooled from
coarse maps. So all boxes are one gather and one matrix product of a fixed size, and none is approximated.

Reference: He et al. 2017 (Mask R-CNN), section 3; detectron2's ROIAlign with aligned=True and sampling_ratio=0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sam_jax.detection.boxes import box_levels
from sam_jax.detection.config import DetectorConfig
from sam_jax.modeling.common import einsum_float32
from sam_jax.types import AnyArray

GATHERED_ELEMENTS = 2**24  # numbers that are gathered at a time
NEAR = 4  # samples are more than half a cell apart, or there is one: no more of them are within a cell of another


def axis_weights(
    start: Float[AnyArray, "*batch"],
    end: Float[AnyArray, "*batch"],
    bins: int,
    cells: Int[AnyArray, "*batch n"],
    side: Int[AnyArray, "*batch"] | int,
) -> Float[Array, "*batch {bins} n"]:
    """Returns the weight of each cell in each bin, along one axis.

    Args:
        start, end: of a box, in cells, with a cell's value at its whole number.
        cells: positions to give the weights of.
        side: cells of the map along the axis. Samples less than one cell outside take the value of the border; those
            farther outside are zero.
    """
    size = (end - start) / bins
    count = jnp.ceil(size)
    step = jnp.maximum(size / jnp.maximum(count, 1), 1e-6)[..., None, None]
    origin = (start[..., None] + jnp.arange(bins) * size[..., None])[..., None]
    position = cells[..., None, :].astype(jnp.float32)
    last, count = jnp.asarray(side - 1, jnp.float32)[..., None, None], count[..., None, None]
    first = jnp.maximum(jnp.floor((position - 1 - origin) / step - 0.5) + 1, 0)  # sample after position - 1
    total = jnp.zeros(())
    for i in range(NEAR):
        sample = origin + (first + i + 0.5) * step
        weight = jnp.maximum(1 - jnp.abs(jnp.clip(sample, 0, last) - position), 0)
        counts = (first + i < count) & (sample >= -1) & (sample <= last + 1)
        total += jnp.where(counts, weight, 0)
    return total / jnp.maximum(count, 1)


def most_cells(config: DetectorConfig) -> int:
    """Returns how many cells a box within the image can touch on the map that it is pooled from."""
    *finer, coarsest = config.sides[:4]
    area = (2 * config.box_size / config.encoder.stride) ** 2  # in cells; a box above it belongs to the next map
    # Under h w < area and h, w <= side, (h + 3)(w + 3) is largest for the longest box.
    bounds = [min(side**2, math.ceil((side + 3) * (min(side, area / side) + 3))) for side in finer]
    return max(coarsest**2, *bounds)


def pool_boxes(
    maps: Sequence[Float[Array, "B _ _ C"]], boxes: Float[AnyArray, "B R 4"], config: DetectorConfig, bins: int
) -> Float[Array, "B R {bins} {bins} C"]:
    """Pools each box, by ROIAlign, from the one of the maps that fits its size.

    Args:
        maps: p2 to p5.
        boxes: in the input frame, within the image. No gradient flows to them. One without area gives zeros.
    """
    B, R = boxes.shape[:2]
    C, cells = maps[0].shape[-1], most_cells(config)
    sides, strides = jnp.array(config.sides[:4]), jnp.array(config.strides[:4])
    starts = jnp.array([0, *(side**2 for side in config.sides[:3])]).cumsum()
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    levels = box_levels(boxes, config)
    corners = boxes / strides[levels][..., None] - 0.5
    flat = jnp.concatenate([x.reshape(B, -1, C) for x in maps], 1)
    at_once = max(1, GATHERED_ELEMENTS // (B * cells * C))
    at_once = max(size for size in range(1, at_once + 1) if R % size == 0)

    def pool(flat: Array, box: Array, level: Array) -> Array:
        side, n = sides[level], jnp.arange(cells)
        low, high = (jnp.clip(x, 0, side - 1).astype(jnp.int32) for x in (jnp.floor(box[:2]), jnp.ceil(box[2:])))
        columns = high[0] - low[0] + 1
        row, column = low[1] + n // columns, low[0] + n % columns
        of_rows = axis_weights(box[1], box[3], bins, row, side)
        of_columns = axis_weights(box[0], box[2], bins, column, side)
        touched = flat[starts[level] + jnp.minimum(row, side - 1) * side + column]
        weights = (of_rows[:, None] * of_columns).reshape(bins * bins, cells)
        return einsum_float32("pn,nc->pc", weights.astype(flat.dtype), touched).astype(flat.dtype)

    @jax.checkpoint
    def pool_some(flat: Array, some: tuple[Array, Array]) -> Array:
        return jax.vmap(functools.partial(pool, flat))(*some)

    def of_image(flat: Array, corners: Array, levels: Array) -> Array:
        some = corners.reshape(-1, at_once, 4), levels.reshape(-1, at_once)
        return jax.lax.map(functools.partial(pool_some, flat), some)

    return jax.vmap(of_image)(flat, corners, levels).reshape(B, R, bins, bins, C)


def crop_masks(
    masks: Float[AnyArray, "*batch H W"], boxes: Float[AnyArray, "*batch 4"], bins: int
) -> Float[Array, "*batch {bins} {bins}"]:
    """Pools a mask for each box, by ROIAlign.

    Args:
        boxes: in pixels of the mask; one for each mask.
    """
    H, W = masks.shape[-2:]
    corners = boxes - 0.5

    def weights(axis: int, side: int) -> Array:
        cells = jnp.broadcast_to(jnp.arange(side), (*boxes.shape[:-1], side))
        return axis_weights(corners[..., axis], corners[..., axis + 2], bins, cells, side)

    return jnp.einsum("...ph,...hw,...qw->...pq", weights(1, H), masks, weights(0, W))
