"""Filters the masks of everything mode on the device: from low_res logits to the few that are kept, as packed bits.

Reference: the official `SamAutomaticMaskGenerator._process_batch`. There every mask is resized to the image and then
most are dropped. Here the masks that pass the IoU filter are resized a few at a time, in a loop that ends with the last
of them, and are returned as bits: the memory on the device does not grow with the number of points.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from sam_jax.config import SamConfig
from sam_jax.ops.masks import frame_matrices
from sam_jax.types import AnyArray

COLUMN_BLOCKS = 16
EDGE = 20.0  # pixels; a box this near to the side of a crop is taken to be cut off


class Frame(NamedTuple):
    """A crop that masks are resized to, and the thresholds for them. A leading axis holds several."""

    rows: Float[AnyArray, "Hp S"]  # from low_res to the crop, in the order that packs into bits; see `make_frames`
    columns: Float[AnyArray, "n w s"]  # likewise for n blocks of columns, each from s neighbours in low_res
    starts: Int[AnyArray, " n"]  # the first of them
    size: Int[AnyArray, "2"]  # (h, w) of the crop
    crop_box: Float[AnyArray, "4"]  # in the image
    image_box: Float[AnyArray, "4"]
    thresholds: Float[AnyArray, "4"]  # predicted IoU above, stability from, stability offset, area below (pixels)


class Selection(NamedTuple):
    """The `kept` masks that passed the filters, in the order of the prompts; the rest is padding."""

    kept: Int[Array, ""]
    source: Int[Array, " N"]  # into the masks flattened: image, prompt, output
    iou_predictions: Float[Array, " N"]
    stability_scores: Float[Array, " N"]
    boxes: Int[Array, "N 4"]  # outermost pixels (x0, y0, x1, y1) in the crop, inclusive
    bits: UInt8[Array, "N Wp n"]  # as `sam_jax.ops.rle.counts_from_bits` takes them


def padded_length(length: int) -> int:
    """Rounds a length up to the next of 8 steps per octave, always above it, so that near sizes share a program."""
    step = max(32, 2 ** (math.ceil(math.log2(length + 1)) - 4))
    return -(-(length + 1) // step) * step


def make_frames(
    sizes: Sequence[tuple[int, int]],
    crop_boxes: Sequence[tuple[int, int, int, int]],
    image_sizes: Sequence[tuple[int, int]],
    thresholds: Sequence[tuple[float, float, float, float]],
    config: SamConfig,
) -> list[Frame]:
    """Returns the frames of crops that are computed together, whose arrays have the same shapes.

    Args:
        sizes: (h, w) of each crop.
        crop_boxes: (x0, y0, x1, y1) of each crop in its image.
        image_sizes: (H, W) of each image.
        thresholds: as in `Frame`.
    """
    S = config.low_res_size
    Hp, Wp = (padded_length(max(lengths)) for lengths in zip(*sizes, strict=True))
    matrices = [frame_matrices(size, config) for size in sizes]
    # Row 8 j + i of the crop comes to i * Hp / 8 + j: then each bit of the bytes is a block of rows.
    rows = [np.pad(m, ((0, Hp - len(m)), (0, 0))).reshape(-1, 8, S).swapaxes(0, 1).reshape(Hp, S) for m, _ in matrices]
    # The matrix for the columns is nearly all zeros, along a diagonal: blocks of it are an eighth of the arithmetic.
    columns = [np.pad(m, ((0, Wp - len(m)), (0, 0))).reshape(COLUMN_BLOCKS, -1, S) for _, m in matrices]
    used = np.stack([blocks.any(1) for blocks in columns])
    starts, ends = used.argmax(-1), np.where(used.any(-1), S - used[..., ::-1].argmax(-1), 0)
    width = min(S, -(-int((ends - starts).max()) // 16) * 16)
    starts = np.minimum(starts, S - width)
    frames = []
    for i, (H, W) in enumerate(image_sizes):
        parts = [block[:, start : start + width] for block, start in zip(columns[i], starts[i], strict=True)]
        size = np.array(sizes[i], np.int32)
        numbers = (np.array(x, np.float32) for x in (crop_boxes[i], (0, 0, W, H), thresholds[i]))
        frames.append(Frame(rows[i], np.stack(parts), starts[i].astype(np.int32), size, *numbers))
    return frames


def select_masks(
    logits: Float[Array, "B Q M S S"],
    iou_predictions: Float[Array, "B Q M"],
    valid: Bool[Array, "B Q"],
    frames: Frame,
    at_once: int,
) -> Selection:
    """Filters masks by predicted IoU, stability, the sides of the crop and area.

    The stability score is the IoU of the masks at the two thresholds +offset and -offset, at the size of the crop, and
    0 where both are empty.

    Args:
        valid: False for prompts that are padding.
        frames: one of each image, along a leading axis.
        at_once: how many masks are resized to the crop together.
    """
    B, Q, M, S, _ = logits.shape
    N = B * Q * M
    flat_logits, flat_iou = logits.reshape(N, S, S), iou_predictions.reshape(N)
    passing = (iou_predictions > frames.thresholds[:, 0, None, None]) & valid[:, :, None]
    # The masks that pass come first, in their order; a last group may reach past the end.
    order = jnp.pad(jnp.argsort(~passing.reshape(N), stable=True), (0, at_once))
    total = passing.sum()
    _, blocks, block_width, near = frames.columns.shape
    Wp, Hp = blocks * block_width, frames.rows.shape[1]

    def measure(index: Array) -> tuple[Array, Array, Array, Array]:
        """Returns whether a mask passes, its stability score, its box and its bits."""
        frame = jax.tree.map(lambda x: x[index // (Q * M)], frames)
        product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        plane = product(flat_logits[index].T, frame.rows.T)  # (S, Hp)
        plane = product(frame.columns, plane[frame.starts[:, None] + jnp.arange(near)]).reshape(Wp, Hp)
        _, stable, offset, max_area = frame.thresholds
        h, w = frame.size
        filling = Wp * Hp - h * w  # where the logit is 0
        union = (plane > -offset).sum() - jnp.where(offset > 0, filling, 0)
        stability = (plane > offset).sum() / jnp.maximum(union, 1)

        mask = (plane > 0).astype(jnp.uint8).reshape(Wp, 8, Hp // 8)
        bits = functools.reduce(operator.or_, (mask[:, i] << (7 - i) for i in range(8)))
        in_column = bits.any(1)
        in_row = jnp.unpackbits(jax.lax.reduce_or(bits, (0,)))
        area = jax.lax.population_count(bits).astype(jnp.int32).sum()
        last_x, last_y = Wp - 1 - in_column[::-1].argmax(), Hp - 1 - in_row[::-1].argmax()
        box = jnp.stack([in_column.argmax(), in_row.argmax(), last_x, last_y]) * (area > 0)

        in_image = box + jnp.tile(frame.crop_box[:2], 2)
        at_crop, at_image = (jnp.abs(in_image - side) <= EDGE for side in (frame.crop_box, frame.image_box))
        cut_off = (at_crop & ~at_image).any()
        return (stability >= stable) & ~cut_off & (area < max_area), stability, box, bits

    def filter_some(state: tuple[Array, Selection]) -> tuple[Array, Selection]:
        done, selection = state
        indices = jax.lax.dynamic_slice(order, (done,), (at_once,))
        stays, stability, boxes, bits = jax.vmap(measure)(indices)
        stays &= done + jnp.arange(at_once) < total
        first = jnp.argsort(~stays, stable=True)
        found = Selection(stays.sum(), indices, flat_iou[indices], stability, boxes, bits)
        # What does not stay is written too, behind, and overwritten by the next.
        arrays = [
            jax.lax.dynamic_update_slice_in_dim(old, new[first].astype(old.dtype), selection.kept, 0)
            for old, new in zip(selection[1:], found[1:], strict=True)
        ]
        return done + at_once, Selection(selection.kept + found.kept, *arrays)

    empty = Selection(
        jnp.zeros((), int),
        jnp.zeros(N + at_once, int),
        jnp.zeros(N + at_once),
        jnp.zeros(N + at_once),
        jnp.zeros((N + at_once, 4), int),
        jnp.zeros((N + at_once, Wp, Hp // 8), jnp.uint8),
    )
    return jax.lax.while_loop(lambda state: state[0] < total, filter_some, (jnp.zeros((), int), empty))[1]
